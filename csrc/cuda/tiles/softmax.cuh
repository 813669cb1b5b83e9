// Pieces of the softmax that several kernels share. Weights are powers of 2.

#pragma once

#include <cmath>

#include "../primitives/platform.cuh"

namespace tdnet::cuda {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fffffff); }

// ln(sum of e^logit) of a row from its maximum and the sum of e^(logit - maximum). Nothing but -inf
// has sum 0 and gives -inf. A row with +inf has sum NaN, as its softmax, and gives NaN.
__device__ __forceinline__ float log_sum_exp(float maximum, float sum) {
  return maximum + logf(sum);
}

}  // namespace tdnet::cuda
