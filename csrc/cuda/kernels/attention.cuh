// softmax(logits) values + bias + residual with the logits made tile by tile and never stored: what
// both attention kernels solve, and combine where the keys are split.

#pragma once

#include <cstdint>

#include "../tiles/map.h"

namespace tdnet::cuda {

// Where the grid would not fill the device the keys are split, each part leaves the weighted mean
// of its values, and a second kernel makes the mean of the parts in their order.
struct PartialSums {
  float* means;   // [splits, batch, N, channel_stride]; where row_sums is 0, 0 or NaN
  float* maxima;  // [splits, batch, N], of the logits times the sign of the scale, before the scale
  float* row_sums;  // [splits, batch, N], of the weights, relative to 2^(maximum log2_scale)
  int splits;       // 1: no partial sums, the three pointers are null
  int64_t channel_stride;

  // In maxima and row_sums, and times channel_stride in means.
  static __host__ __device__ int64_t row(int64_t split, int64_t batch, int64_t b, int64_t queries,
                                         int64_t query) {
    return (split * batch + b) * queries + query;
  }
  __host__ __device__ int64_t mean(int64_t row, int64_t channel) const {
    return row * channel_stride + channel;
  }
};

template <class T>
struct Attention {
  // The logits: scale * queries keys^T where `queries` is a map, else `affinity` as a map whose
  // tokens are the queries and whose channels are the keys, with scale 1.
  Heads<const T> queries, keys;
  Map<const T> affinity;
  Heads<const T> values;
  Heads<const T> bias;      // a map of one pixel, the same in all batches; data null: none
  Heads<const T> residual;  // data null: none
  Heads<T> out;
  float* log_sum_exp;  // [batch, N] of the logits, natural logarithm; null: not wanted
  float scale;
  int64_t batch;  // every head of every map
  int key_count;
  // With more than one part the kernels write these alone, and launch_combine the rest.
  PartialSums partial;
};

}  // namespace tdnet::cuda
