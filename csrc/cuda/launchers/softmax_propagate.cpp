// softmax_propagate on CUDA tensors: attention_propagate from given logits.

#include <torch/csrc/stable/library.h>

#include "../../checks.h"
#include "../../tensors.h"
#include "propagate.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

Tensor softmax_propagate(const Tensor& affinity, const Tensor& v, std::vector<int64_t> size,
                         const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& bias, bool allow_tf32) {
  const MapShape shape = check_softmax_propagate(affinity, v, size, residual, weight, bias);
  if (is_double(affinity)) {
    return call_operator("tdnet_reference::softmax_propagate", affinity, v, size, residual, weight,
                         bias, allow_tf32)[0];
  }
  Tensor out = empty_map(residual ? *residual : v, v.scalar_type(), shape);
  propagate({.q = {}, .k = {}, .affinity = affinity}, v, {residual, weight, bias}, allow_tf32, out);
  return out;
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) { m.impl("softmax_propagate", TORCH_BOX(&tdnet::cuda::softmax_propagate)); }
