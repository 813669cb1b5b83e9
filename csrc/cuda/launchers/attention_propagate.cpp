// attention_propagate on CUDA tensors, Eq. 4 and 5.

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../../checks.h"
#include "../../tensors.h"
#include "propagate.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

Tensor attention_propagate(const Tensor& q, const Tensor& k, const Tensor& v,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                           std::optional<double> scale, bool allow_tf32) {
  check_attention_propagate(q, k, v, residual, weight, bias);
  if (is_double(q)) {
    return call_operator("tdnet_reference::attention_propagate", q, k, v, residual, weight, bias,
                         scale, allow_tf32)[0];
  }
  const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(1))));
  return propagate_projected({.q = q, .k = k, .scale = factor, .affinity = std::nullopt}, q,
                             q.size(2), q.size(3), v, {residual, weight, bias}, allow_tf32);
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) {
  m.impl("attention_propagate", TORCH_BOX(&tdnet::cuda::attention_propagate));
}
