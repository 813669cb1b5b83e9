// Argument checks: each error names the argument, what came and what was expected; each operator's
// check returns the shape of its result.
//
// tdnet_ops/checks.py and tdnet_ops/operators are the twin for fake kernels and Python backends:
// the same tests in the same order with the same texts. What the dispatcher never hands to a kernel
// of a dense device (a sparse or a nested tensor) is tested there alone.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "arithmetic.h"
#include "text.h"
#include "torch_call.h"

namespace tdnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using MapShape = std::array<int64_t, 4>;     // [B, C, H, W]
using MatrixShape = std::array<int64_t, 3>;  // [B, N, M]; of labels [B, H, W]

// Throws what Python sees as a RuntimeError, its text the parts in a row and nothing else.
template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Unlike x.scalar_type() also where the stable ABI does not know the dtype (torch.int4).
inline ScalarType dtype_of(const Tensor& x) {
  int32_t dtype = 0;
  TDNET_CHECK_TORCH_CALL(aoti_torch_get_dtype(x.get(), &dtype));
  return static_cast<ScalarType>(dtype);
}

inline void check_tensor(const std::string& name, const Tensor& x, int64_t rank) {
  check(x.defined(), name, ": expected a tensor, got NoneType");
  const ScalarType dtype = dtype_of(x);
  check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
            dtype == ScalarType::BFloat16,
        name, ": expected float32, float64, float16 or bfloat16, got ", dtype_name(dtype));
  check(x.dim() == rank, name, ": expected ", rank, " dimensions, got shape ", shape_text(x));
}

// [B, C, H, W] with at least one channel.
inline void check_feature_map(const std::string& name, const Tensor& x) {
  check_tensor(name, x, 4);
  check(x.size(1) > 0, name, ": expected at least one channel, got shape ", shape_text(x));
}

inline void check_has_pixels(const std::string& name, const Tensor& x) {
  check(x.size(2) > 0 && x.size(3) > 0, name, ": expected at least one pixel, got shape ",
        shape_text(x));
}

// Same dtype and device.
inline void check_matches(const std::string& name, const Tensor& x, const std::string& like_name,
                          const Tensor& like) {
  check(x.scalar_type() == like.scalar_type(), name, ": expected ", dtype_name(like.scalar_type()),
        " as ", like_name, ", got ", dtype_name(x.scalar_type()));
  const auto device = x.device(), like_device = like.device();
  check(device == like_device, name, ": expected device ", device_name(like_device), " as ",
        like_name, ", got ", device_name(device));
}

inline void check_size(const std::string& name, const Tensor& x, int64_t dim, int64_t expected,
                       const std::string& source) {
  check(x.size(dim) == expected, name, ": expected size ", expected, " (", source,
        ") in dimension ", dim, ", got shape ", shape_text(x));
}

inline void check_positive(const std::string& name, int64_t value) {
  check(value >= 1, name, ": expected at least 1, got ", value);
}

// Strides, paddings and dilations, in pixels; torch's own operators take no more. Sums and products
// with the size of a map stay far from overflowing.
inline void check_most_pixels(const std::string& name, int64_t value) {
  constexpr int64_t kMost = 2147483647;
  check(value <= kMost, name, ": expected at most ", kMost, ", got ", value);
}

inline void check_choice(const std::string& name, const std::string& value, const char* first,
                         const char* second) {
  check(value == first || value == second, name, ": expected one of ['", first, "', '", second,
        "'], got '", value, "'");
}

inline void check_activation(const std::string& activation) {
  check_choice("activation", activation, "none", "relu");
}

inline void check_output_size(const std::vector<int64_t>& size) {
  check(size.size() == 2, "size: expected (height, width), got ", TupleText{size});
  for (const int64_t value : size) check_positive("size", value);
}

inline void check_bias(const std::optional<Tensor>& bias, const std::string& like_name,
                       const Tensor& like, int64_t out_channels) {
  if (!bias) return;
  check_tensor("bias", *bias, 1);
  check_matches("bias", *bias, like_name, like);
  check_size("bias", *bias, 0, out_channels, "output channels");
}

inline void check_output_channels(const std::string& name, const Tensor& weight, int64_t dim = 0) {
  check(weight.size(dim) > 0, name, ": expected at least one output channel, got shape ",
        shape_text(weight));
}

inline void check_queries_and_keys(const Tensor& q, const Tensor& k) {
  check_feature_map("q", q);
  check_feature_map("k", k);
  check_matches("k", k, "q", q);
  check_size("k", k, 0, q.size(0), "batch of q");
  check_size("k", k, 1, q.size(1), "channels of q");
  check_has_pixels("k", k);
}

inline void check_pooling(int64_t stride, const std::string& mode) {
  check_positive("stride", stride);
  check_most_pixels("stride", stride);
  check_choice("mode", mode, "max", "subsample");
}

// What is added to a result of this shape.
inline void check_residual(const std::optional<Tensor>& residual, const std::string& like_name,
                           const Tensor& like, const MapShape& shape) {
  if (!residual) return;
  check_feature_map("residual", *residual);
  check_matches("residual", *residual, like_name, like);
  check_size("residual", *residual, 0, shape[0], "batch of " + like_name);
  check_size("residual", *residual, 1, shape[1], "output channels");
  check_size("residual", *residual, 2, shape[2], "output height");
  check_size("residual", *residual, 3, shape[3], "output width");
}

// phi and the residual of Eq. 4 and 5. Returns the shape of the result.
inline MapShape check_projection(const std::string& like_name, const Tensor& like,
                                 int64_t value_channels, int64_t height, int64_t width,
                                 const std::optional<Tensor>& residual,
                                 const std::optional<Tensor>& weight,
                                 const std::optional<Tensor>& bias) {
  int64_t out_channels = value_channels;
  if (weight) {
    check_tensor("weight", *weight, 2);
    check_matches("weight", *weight, like_name, like);
    check_size("weight", *weight, 1, value_channels, "channels of v");
    out_channels = weight->size(0);
    check_output_channels("weight", *weight);
  }
  check_bias(bias, like_name, like, out_channels);
  const MapShape shape{like.size(0), out_channels, height, width};
  check_residual(residual, like_name, like, shape);
  return shape;
}

// [B, C_out, H', W'] of a stride-1 convolution of x [B, C, H, W] by weight [C_out, C, k, k].
inline MapShape convolved_shape(const Tensor& x, const Tensor& weight, int64_t padding,
                                int64_t dilation) {
  const int64_t shrink = dilation * (weight.size(2) - 1) - 2 * padding;
  return {x.size(0), weight.size(0), x.size(2) - shrink, x.size(3) - shrink};
}

// A stride-1 convolution of x by weight, 1x1 or 3x3.
inline MapShape check_convolution(const std::string& x_name, const Tensor& x,
                                  const std::string& weight_name, const Tensor& weight,
                                  int64_t padding, int64_t dilation) {
  check_feature_map(x_name, x);
  check_has_pixels(x_name, x);
  check_tensor(weight_name, weight, 4);
  check_matches(weight_name, weight, x_name, x);
  const int64_t kernel = weight.size(2);
  check((kernel == 1 || kernel == 3) && weight.size(3) == kernel, weight_name,
        ": expected a 1x1 or 3x3 kernel, got shape ", shape_text(weight));
  check_size(weight_name, weight, 1, x.size(1), "channels of " + x_name);
  check_output_channels(weight_name, weight);
  check_positive("dilation", dilation);
  check_most_pixels("dilation", dilation);
  check(padding >= 0, "padding: expected at least 0, got ", padding);
  check_most_pixels("padding", padding);
  const MapShape shape = convolved_shape(x, weight, padding, dilation);
  for (const int dim : {2, 3}) {
    check(shape[dim] >= 1, x_name, ": expected a ", dim == 2 ? "height" : "width", " of at least ",
          x.size(dim) - shape[dim] + 1, " for a ", kernel, "x", kernel, " kernel with padding ",
          padding, " and dilation ", dilation, ", got ", x.size(dim));
  }
  return shape;
}

// gamma_n of Eq. 3: [B, C, ceil(H/n), ceil(W/n)].
inline MapShape pooled_shape(const Tensor& x, int64_t stride) {
  return {x.size(0), x.size(1), divide_up(x.size(2), stride), divide_up(x.size(3), stride)};
}

// ---- one function an operator ----

inline MapShape check_spatial_pool(const Tensor& x, int64_t stride, const std::string& mode) {
  check_feature_map("x", x);
  check_has_pixels("x", x);
  check_pooling(stride, mode);
  return pooled_shape(x, stride);
}

inline MatrixShape check_pooled_affinity(const Tensor& q, const Tensor& k, int64_t stride,
                                         const std::string& mode) {
  check_queries_and_keys(q, k);
  check_pooling(stride, mode);
  const MapShape pooled = pooled_shape(k, stride);
  return {q.size(0), q.size(2) * q.size(3), pooled[2] * pooled[3]};
}

inline MapShape check_softmax_propagate(const Tensor& affinity, const Tensor& v,
                                        const std::vector<int64_t>& size,
                                        const std::optional<Tensor>& residual,
                                        const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& bias) {
  check_tensor("affinity", affinity, 3);
  check_feature_map("v", v);
  check_matches("v", v, "affinity", affinity);
  check_has_pixels("v", v);
  check_size("v", v, 0, affinity.size(0), "batch of affinity");
  check_size("affinity", affinity, 2, v.size(2) * v.size(3), "keys: pixels of v");
  check_output_size(size);
  const int64_t queries = affinity.size(1);
  // Each alone first: their product may overflow.
  check(size[0] <= queries && size[1] <= queries && size[0] * size[1] == queries,
        "size: expected height x width = ", queries, ", the queries of affinity, got ",
        TupleText{size});
  return check_projection("affinity", affinity, v.size(1), size[0], size[1], residual, weight,
                          bias);
}

inline void check_heads(const std::string& name, const Tensor& x, int64_t heads) {
  check(x.size(1) % heads == 0, name, ": expected channels for ", heads, " heads, got shape ",
        shape_text(x));
}

// Also of attention_propagate_forward, whose second result is [B, heads, H, W].
inline MapShape check_attention_propagate(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const std::optional<Tensor>& residual,
                                          const std::optional<Tensor>& weight,
                                          const std::optional<Tensor>& bias, int64_t heads) {
  check_queries_and_keys(q, k);
  check_feature_map("v", v);
  check_matches("v", v, "q", q);
  check_size("v", v, 0, q.size(0), "batch of q");
  check_size("v", v, 2, k.size(2), "height of k");
  check_size("v", v, 3, k.size(3), "width of k");
  check_positive("heads", heads);
  check_heads("q", q, heads);
  check_heads("v", v, heads);
  return check_projection("q", q, v.size(1), q.size(2), q.size(3), residual, weight, bias);
}

// Returns the shape of the forward pass's result, which `grad` has.
inline MapShape check_attention_propagate_backward(const Tensor& grad,
                                                   const std::optional<Tensor>& grad_log_sum_exp,
                                                   const Tensor& q, const Tensor& k,
                                                   const Tensor& v,
                                                   const std::optional<Tensor>& weight,
                                                   const Tensor& log_sum_exp, int64_t heads) {
  const MapShape shape = check_attention_propagate(q, k, v, {}, weight, {}, heads);
  if (weight) {
    check(heads == 1, "weight: expected None beside several heads, which it would mix, got shape ",
          shape_text(*weight));
  }
  const auto check_like = [](const std::string& name, const Tensor& x, const MapShape& expected,
                             const std::string& source) {
    check_tensor(name, x, 4);
    for (int64_t dim = 0; dim < 4; ++dim) check_size(name, x, dim, expected[dim], source);
  };
  const MapShape rows{shape[0], heads, shape[2], shape[3]};
  check_like("grad", grad, shape, "the result");
  check_matches("grad", grad, "q", q);
  check_like("log_sum_exp", log_sum_exp, rows, "batch, heads and pixels of q");
  const ScalarType wide =
      q.scalar_type() == ScalarType::Double ? q.scalar_type() : ScalarType::Float;
  check(log_sum_exp.scalar_type() == wide, "log_sum_exp: expected ", dtype_name(wide), ", got ",
        dtype_name(log_sum_exp.scalar_type()));
  if (grad_log_sum_exp) {
    check_like("grad_log_sum_exp", *grad_log_sum_exp, rows, "batch, heads and pixels of q");
    check_matches("grad_log_sum_exp", *grad_log_sum_exp, "log_sum_exp", log_sum_exp);
  }
  return shape;
}

inline MapShape check_block_sum_reduce(const std::vector<Tensor>& blocks,
                                       const std::vector<Tensor>& weights,
                                       const std::optional<Tensor>& bias, int64_t padding,
                                       int64_t dilation, const std::string& activation) {
  check(!blocks.empty(), "blocks: expected at least one block, got an empty list");
  check(weights.size() == blocks.size(), "weights: expected ", blocks.size(), ", one a block, got ",
        weights.size());
  check_activation(activation);
  MapShape shape;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string x_name = "blocks[" + std::to_string(i) + "]";
    const std::string weight_name = "weights[" + std::to_string(i) + "]";
    // Before its weight, which would be blamed for it.
    check_feature_map(x_name, blocks[i]);
    check_matches(x_name, blocks[i], "blocks[0]", blocks[0]);
    check_size(x_name, blocks[i], 0, blocks[0].size(0), "batch of blocks[0]");
    check_size(x_name, blocks[i], 2, blocks[0].size(2), "height of blocks[0]");
    check_size(x_name, blocks[i], 3, blocks[0].size(3), "width of blocks[0]");
    shape = check_convolution(x_name, blocks[i], weight_name, weights[i], padding, dilation);
    check_size(weight_name, weights[i], 0, weights[0].size(0), "output channels of weights[0]");
    check_size(weight_name, weights[i], 2, weights[0].size(2), "kernel of weights[0]");
  }
  check_bias(bias, "blocks[0]", blocks[0], weights[0].size(0));
  return shape;
}

// The shape of both results.
inline MapShape check_block_sum_update(const std::vector<Tensor>& partials, int64_t index,
                                       const Tensor& x, const Tensor& weight,
                                       const std::optional<Tensor>& bias, int64_t padding,
                                       int64_t dilation, const std::string& activation) {
  const int64_t count = partials.size();
  check(count > 0, "partials: expected at least one, got an empty list");
  check(0 <= index && index < count, "index: expected 0 to ", count - 1,
        ", a place in partials, got ", index);
  check_activation(activation);
  const MapShape shape = check_convolution("x", x, "weight", weight, padding, dilation);
  for (int64_t i = 0; i < count; ++i) {
    if (i == index) continue;
    const std::string name = "partials[" + std::to_string(i) + "]";
    check_feature_map(name, partials[i]);
    check_matches(name, partials[i], "x", x);
    check_size(name, partials[i], 0, shape[0], "batch of the new partial");
    check_size(name, partials[i], 1, shape[1], "channels of the new partial");
    check_size(name, partials[i], 2, shape[2], "height of the new partial");
    check_size(name, partials[i], 3, shape[3], "width of the new partial");
  }
  check_bias(bias, "x", x, weight.size(0));
  return shape;
}

inline MapShape check_winograd_conv2d(const Tensor& x, const Tensor& weight,
                                      const std::optional<Tensor>& bias,
                                      const std::optional<Tensor>& residual, int64_t dilation,
                                      const std::string& activation) {
  check_activation(activation);
  check_feature_map("x", x);
  check_has_pixels("x", x);
  check_tensor("weight", weight, 3);
  check_matches("weight", weight, "x", x);
  check_size("weight", weight, 0, 36, "positions of a transformed tile");
  check_size("weight", weight, 2, x.size(1), "channels of x");
  check_output_channels("weight", weight, 1);
  check_positive("dilation", dilation);
  check_most_pixels("dilation", dilation);
  const MapShape shape{x.size(0), weight.size(1), x.size(2), x.size(3)};
  check_bias(bias, "x", x, shape[1]);
  check_residual(residual, "x", x, shape);
  return shape;
}

inline MatrixShape check_upsample_argmax(const Tensor& logits, const std::vector<int64_t>& size,
                                         ScalarType dtype) {
  check_feature_map("logits", logits);
  check_has_pixels("logits", logits);
  check_output_size(size);
  check(dtype == ScalarType::Byte || dtype == ScalarType::Long,
        "dtype: expected one of [torch.uint8, torch.int64], got ", dtype_name(dtype));
  check(dtype == ScalarType::Long || logits.size(1) <= 256,
        "dtype: expected torch.int64 for logits of ", logits.size(1), " classes, got torch.uint8");
  return {logits.size(0), size[0], size[1]};
}

}  // namespace tdnet
