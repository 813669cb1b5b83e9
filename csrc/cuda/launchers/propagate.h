// phi(softmax(logits) v) + residual on tensors: the shared half of the attention_propagate and
// softmax_propagate launchers.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace tdnet::cuda {

// Either queries and keys with their scale, or the logits themselves.
struct Logits {
  std::optional<torch::stable::Tensor> q, k;
  double scale = 1.0;
  std::optional<torch::stable::Tensor> affinity;  // [B, N, M]
};

struct Projection {
  std::optional<torch::stable::Tensor> residual, weight, bias;
};

// Returns [B, d_out, height, width] in the layout and dtype of `layout`. Arguments are checked by
// the caller.
torch::stable::Tensor propagate_projected(const Logits& logits, const torch::stable::Tensor& layout,
                                          int64_t height, int64_t width,
                                          const torch::stable::Tensor& v,
                                          const Projection& projection, bool allow_tf32);

}  // namespace tdnet::cuda
