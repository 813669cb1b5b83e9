// act(sum_i conv_i(x_i) + bias + residual) as one implicit matrix product over all blocks.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <vector>

namespace tdnet::cpu {

struct ConvolutionOptions {
  int64_t padding = 0;
  int64_t dilation = 1;
  bool relu = false;
};

// blocks[i] [B, C_i, H, W] float32 by weights[i] [C_out, C_i, k, k] -> a map of `shape`
// [B, C_out, H', W'] in the layout of `like`. Arguments are checked by the caller.
torch::stable::Tensor convolve_blocks(const torch::stable::Tensor& like,
                                      const std::array<int64_t, 4>& shape,
                                      const std::vector<torch::stable::Tensor>& blocks,
                                      const std::vector<torch::stable::Tensor>& weights,
                                      const std::optional<torch::stable::Tensor>& bias,
                                      const std::optional<torch::stable::Tensor>& residual,
                                      const ConvolutionOptions& options);

}  // namespace tdnet::cpu
