// attention_propagate on CUDA tensors, Eq. 4 and 5.

#include <torch/csrc/stable/library.h>

#include <array>

#include "../../arithmetic.h"
#include "../../checks.h"
#include "../../tensors.h"
#include "propagate.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

Logits logits_of(const Tensor& q, const Tensor& k, std::optional<double> scale, int64_t heads) {
  return {.q = q,
          .k = k,
          .scale = scale_or_default(scale, q.size(1) / heads),
          .heads = heads,
          .affinity = {}};
}

Tensor attention_propagate(const Tensor& q, const Tensor& k, const Tensor& v,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                           std::optional<double> scale, int64_t heads, bool allow_tf32) {
  const MapShape shape = check_attention_propagate(q, k, v, residual, weight, bias, heads);
  if (is_double(q)) {
    return call_operator("tdnet_reference::attention_propagate", q, k, v, residual, weight, bias,
                         scale, heads, allow_tf32)[0];
  }
  Tensor out = empty_map(q, q.scalar_type(), shape);
  propagate(logits_of(q, k, scale, heads), v, {residual, weight, bias}, allow_tf32, out);
  return out;
}

// Also the log-sum-exp of each query's logits [B, heads, H, W].
std::tuple<Tensor, Tensor> attention_propagate_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& residual,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    std::optional<double> scale, int64_t heads, bool allow_tf32) {
  const MapShape shape = check_attention_propagate(q, k, v, residual, weight, bias, heads);
  if (is_double(q)) {
    const auto results = call_operator<2>("tdnet_reference::attention_propagate_forward", q, k, v,
                                          residual, weight, bias, scale, heads, allow_tf32);
    return {results[0], results[1]};
  }
  Tensor out = empty_map(q, q.scalar_type(), shape);
  const MapShape rows{q.size(0), heads, q.size(2), q.size(3)};
  Tensor log_sum_exp = new_result(q, rows, ScalarType::Float);
  propagate(logits_of(q, k, scale, heads), v, {residual, weight, bias}, allow_tf32, out,
            &log_sum_exp);
  return {out, log_sum_exp};
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) {
  m.impl("attention_propagate", TORCH_BOX(&tdnet::cuda::attention_propagate));
  m.impl("attention_propagate_forward", TORCH_BOX(&tdnet::cuda::attention_propagate_forward));
}
