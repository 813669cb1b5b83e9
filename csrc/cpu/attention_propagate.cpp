// attention_propagate, Eq. 4 and 5: phi(softmax(q k^T scale) v) + residual, the affinity never
// stored.
//
// For a tile of queries (lanes of the vector registers) the logits of all keys are computed into
// the second-level cache, turned into weights there, and multiplied with the values, which already
// carry phi. Both products are computed transposed, keys and channels broadcast against queries, so
// an NCHW map is read and written without a permutation.

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "dtypes.h"
#include "propagate.h"

namespace tdnet::cpu {
namespace {

Tensor attention_propagate_float(const Tensor& like, const MapShape& shape, Tensor q, Tensor k,
                                 const Tensor& v, const Projection& projection,
                                 std::optional<double> scale, int64_t heads, float* log_sum_exp) {
  const int rows = tile_loops().rows;
  const int64_t queries = q.size(2) * q.size(3), keys = k.size(2) * k.size(3);
  const int64_t channels = q.size(1) / heads;
  const int64_t strips = divide_up(keys, rows);
  const Tokens query_tokens = tokens(q, heads), key_tokens = tokens(k, heads);
  const float factor = static_cast<float>(scale_or_default(scale, channels));

  // The keys of some batches as strips [batch][strips][channels, rows], carrying the scale.
  const int64_t strip_size = channels * rows;
  std::optional<Buffer> packed_keys;
  int64_t first_packed = 0;
  const auto prepare = [&](int64_t first_batch, int64_t count) {
    if (!packed_keys) packed_keys.emplace(count * strips * strip_size, "packed keys");
    first_packed = first_batch;
    for_each_tile(count * strips, [&](const auto& take) {
      for (int64_t t = take(); t >= 0; t = take()) {
        pack_tokens(key_tokens, first_batch + t / strips, t % strips * rows, keys, channels, rows,
                    factor, packed_keys->get() + t * strip_size);
      }
    });
  };
  const auto fill = [&](const TileLoops& loops, int64_t b, int64_t first, float* packed_queries,
                        float* panel) {
    pack_tokens(query_tokens, b, first, queries, channels, loops.lanes, 1.0f, packed_queries);
    const float* strip = packed_keys->get() + (b - first_packed) * strips * strip_size;
    for (int64_t s = 0; s < strips; ++s) {
      loops.product(channels, strip + s * strip_size, packed_queries,
                    panel + s * rows * loops.lanes);
    }
  };
  const Logits logits{fill, channels * tile_loops().lanes, prepare};
  return propagate_projected(like, shape, v, projection, logits, heads, log_sum_exp);
}

// Of any dtype but float64, arguments checked.
Tensor propagate_attention(const MapShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                           const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                           std::optional<double> scale, int64_t heads, float* log_sum_exp) {
  const Tensor out = attention_propagate_float(
      q, shape, to_float(q), to_float(k), to_float(v),
      {to_float(residual), to_float(weight), to_float(bias)}, scale, heads, log_sum_exp);
  return from_float(out, q.scalar_type());
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
  return propagate_attention(shape, q, k, v, residual, weight, bias, scale, heads, nullptr);
}

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
  const MapShape rows{shape[0], heads, shape[2], shape[3]};
  const Tensor log_sum_exp = new_result(q, rows, ScalarType::Float);
  return {propagate_attention(shape, q, k, v, residual, weight, bias, scale, heads,
                              log_sum_exp.mutable_data_ptr<float>()),
          log_sum_exp};
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("attention_propagate", TORCH_BOX(&tdnet::cpu::attention_propagate));
  m.impl("attention_propagate_forward", TORCH_BOX(&tdnet::cpu::attention_propagate_forward));
}
