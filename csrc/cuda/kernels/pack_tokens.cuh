// A map of any strides to tokens [B, tokens, channel_stride], zeros beyond its channels.

#pragma once

#include "../tiles/map.h"

namespace tdnet::cuda {

template <class T>
cudaError_t launch_pack_tokens(const Map<const T>& map, int batch, T* tokens,
                               int64_t channel_stride, cudaStream_t stream);

}  // namespace tdnet::cuda
