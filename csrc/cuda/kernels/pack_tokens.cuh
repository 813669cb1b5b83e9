// Heads of maps of any strides to tokens [B * heads, tokens, channel_stride], zeros beyond their
// channels.

#pragma once

#include "../tiles/map.h"

namespace tdnet::cuda {

template <class T>
cudaError_t launch_pack_tokens(const Heads<const T>& heads, int64_t batch, T* tokens,
                               int64_t channel_stride, cudaStream_t stream);

}  // namespace tdnet::cuda
