// softmax(scale queries keys^T) values + bias + residual on tensor cores in half precision, for 64
// channels of queries and keys: the tuned kernel of attention_propagate. (propagate.cuh has the
// general one.)

#pragma once

#include <cstdint>

#include "../tiles/map.h"
#include "attention.cuh"

namespace tdnet::cuda {

// A scale of 0 leaves no room for what the kernel adds to the logits of bfloat16.
constexpr float kLeastScale = 1e-28f;

// Parts of the keys that fill the current device.
int tensor_core_attention_splits(int64_t batch, int queries, int channels, int key_count);

// For T = __half or __nv_bfloat16. What the problem must be, besides: queries of 64 channels, keys
// and values with Access::kVectors and all tokens in one row, no fewer channels of values than of
// `out`; |scale| >= kLeastScale.
template <class T>
cudaError_t launch_tensor_core_attention(const Attention<T>& problem, cudaStream_t stream);

}  // namespace tdnet::cuda
