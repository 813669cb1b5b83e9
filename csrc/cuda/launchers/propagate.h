// phi(softmax(logits) v) + residual on tensors: what the launchers of attention_propagate and
// softmax_propagate have in common.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "convolve.h"

namespace tdnet::cuda {

// Either queries and keys with their scale, or the logits themselves, of one head.
struct Logits {
  std::optional<Tensor> q, k;
  double scale = 1.0;
  int64_t heads = 1;
  std::optional<Tensor> affinity;  // [B, N, M]
};

// Writes `out` [B, d_out, height, width], NCHW or channels_last, and the log-sum-exp of the logits
// [B, heads, N] float32 where it is given. Arguments are checked by the caller.
void propagate(const Logits& logits, const Tensor& v, const Projection& projection, bool allow_tf32,
               Tensor& out, Tensor* log_sum_exp = nullptr);

}  // namespace tdnet::cuda
