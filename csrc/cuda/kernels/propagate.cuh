// The general kernel of attention_propagate and softmax_propagate, for any channel counts and
// dtypes. (attention_tensor_cores.cuh is the tuned one for 64 key channels in half precision.)

#pragma once

#include "attention.cuh"

namespace tdnet::cuda {

// Splits of the keys that fill the current device.
int propagate_splits(int64_t batch, int queries, int channels, int key_count);

// Half precision on tensor cores; float32 on tensor cores as TF32 if allowed, else in full.
template <class T>
cudaError_t launch_propagate(const Attention<T>& problem, bool allow_tf32, cudaStream_t stream);

}  // namespace tdnet::cuda
