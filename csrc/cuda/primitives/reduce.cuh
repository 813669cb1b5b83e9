// Reductions over a warp and votes over a block.

#pragma once

#include "platform.cuh"

namespace tdnet::cuda {

// Of kLanes neighbouring lanes, in every one of them; as fmaxf, a NaN loses.
template <int kLanes = 32>
__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  }
  return x;
}

template <int kLanes = 32>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(~0u, x, distance);
  }
  return x;
}

// A barrier that tells every thread of the block whether any passed true.
__device__ __forceinline__ bool barrier_or(bool x TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  return __syncthreads_or(x, file, line) != 0;
#else
  return __syncthreads_or(x) != 0;
#endif
}

}  // namespace tdnet::cuda
