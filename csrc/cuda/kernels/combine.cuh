// The mean of the parts that attention kernels leave where the keys are split, in their order:
//
//   out = sum_s (w_s / sum_s w_s) means_s + bias + residual,
//   w_s = 2^((maxima_s - max_s maxima_s) * log2_scale) row_sums_s
//   log_sum_exp = |scale| max_s maxima_s + ln(sum_s w_s)

#pragma once

#include "attention.cuh"

namespace tdnet::cuda {

template <class T>
cudaError_t launch_combine(const Attention<T>& problem, float log2_scale, cudaStream_t stream);

}  // namespace tdnet::cuda
