// softmax_propagate, Eq. 4 and 5 with given logits: phi(softmax(affinity) v) + residual.

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "dtypes.h"
#include "propagate.h"

namespace tdnet::cpu {
namespace {

Tensor softmax_propagate(const Tensor& affinity, const Tensor& v, std::vector<int64_t> size,
                         const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& bias, bool allow_tf32) {
  const MapShape shape = check_softmax_propagate(affinity, v, size, residual, weight, bias);
  if (is_double(affinity)) {
    return call_operator("tdnet_reference::softmax_propagate", affinity, v, size, residual, weight,
                         bias, allow_tf32)[0];
  }
  const Tensor logits = to_float(affinity);
  const int64_t queries = logits.size(1), keys = logits.size(2);
  const Tokens query_tokens{logits.const_data_ptr<float>(), logits.stride(0), logits.stride(2),
                            logits.stride(1)};
  const auto fill = [&](const TileLoops& loops, int64_t b, int64_t first, float*, float* panel) {
    pack_tokens(query_tokens, b, first, queries, keys, loops.lanes, 1.0f, panel);
  };
  const Tensor out =
      propagate_projected(residual ? *residual : v, shape, to_float(v),
                          {to_float(residual), to_float(weight), to_float(bias)}, {fill, 0});
  return from_float(out, affinity.scalar_type());
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("softmax_propagate", TORCH_BOX(&tdnet::cpu::softmax_propagate));
}
