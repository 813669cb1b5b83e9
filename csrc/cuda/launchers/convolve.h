// Sums of stride-1 convolutions, 1x1 or 3x3, on tensors of any strides: what block_sum_reduce,
// block_sum_update and phi have in common.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace tdnet::cuda {

using torch::stable::Tensor;

// float16, bfloat16 or float32, all alike; arguments are checked by the caller.
struct ConvolutionArguments {
  std::vector<Tensor> blocks;   // [B, C_i, H, W]
  std::vector<Tensor> weights;  // [C_out, C_i, k, k]
  std::optional<Tensor> bias = std::nullopt;
  // At most kMostAddends maps, added to the sum of the convolutions, which stands at `place` in
  // their order.
  std::vector<Tensor> addends = {};
  int64_t place = 0;
  int64_t padding = 0, dilation = 1;
  bool relu = false, allow_tf32 = false;
};

// out = activation(addends and sum in their order + bias). `out` [B, channels >= C_out, H', W'] is
// NCHW or channels_last; channels beyond C_out become zero. `sum`, if given, has the strides of
// `out` and receives the sum of the convolutions alone.
void convolve(const ConvolutionArguments& arguments, Tensor& out, Tensor* sum = nullptr);

// v W^T: [B, d_v, h, w] by [d_out, d_v] to channels_last [B, d_out rounded up to 8, h, w], zeros in
// the channels beyond d_out.
Tensor fold(const Tensor& v, const Tensor& weight, bool allow_tf32);

// out = phi(x) + residual.
struct Projection {
  std::optional<Tensor> residual, weight, bias;  // weight [d_out, d_v]
};
void project(const Tensor& x, const Projection& phi, bool allow_tf32, Tensor& out);

}  // namespace tdnet::cuda
