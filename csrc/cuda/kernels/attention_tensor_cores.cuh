// softmax(scale queries keys^T) values + bias + residual on tensor cores in half precision, for 64
// channels of queries and keys: the tuned kernel of attention_propagate. (propagate.cuh has the
// general one.)

#pragma once

#include <cstdint>

#include "../tiles/map.h"
#include "attention.cuh"

namespace tdnet::cuda {

template <class T>  // __half or __nv_bfloat16
struct TensorCoreAttention {
  Map<const T> queries;   // 64 channels, any strides
  const T* keys;          // [B, key_count, 64], 16-byte aligned
  const T* values;        // [B, key_count, value_stride], 16-byte aligned
  int64_t value_stride;   // a multiple of 8, no less than out.channels
  const T* bias;          // [out.channels] or null
  Map<const T> residual;  // data null: none
  Map<T> out;             // whole: NCHW contiguous or channels_last
  float scale;            // kLeastScale or more, or -kLeastScale or less
  int batch, key_count;
  // With more than one part, `out` gives the shape but is not written, and bias and residual are
  // left to launch_combine. channel_stride is a multiple of 8, no less than out.channels.
  PartialSums partial;
};

// A scale of 0 leaves no room for what the kernel adds to the logits of bfloat16.
constexpr float kLeastScale = 1e-28f;

// Parts of the keys that fill the current device.
int tensor_core_attention_splits(int batch, int queries, int channels, int key_count);

template <class T>
cudaError_t launch_tensor_core_attention(const TensorCoreAttention<T>& problem,
                                         cudaStream_t stream);

}  // namespace tdnet::cuda
