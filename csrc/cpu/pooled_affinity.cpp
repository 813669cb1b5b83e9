// pooled_affinity, the logits of Eq. 1: q gamma_n(k)^T scale. Queries are broadcast against the
// pooled keys in the vector lanes, so that a row of the affinity is stored at once.

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "dtypes.h"
#include "pooling.h"
#include "tile.h"

namespace tdnet::cpu {
namespace {

Tensor pooled_affinity_float(const MatrixShape& shape, Tensor q, Tensor k, double scale) {
  const TileLoops& loops = tile_loops();
  const int64_t batch = shape[0], channels = q.size(1), queries = shape[1], keys = shape[2];
  const Tokens query_tokens = tokens(q), key_tokens = tokens(k);
  const Tensor affinity = with_huge_pages(new_result(q, shape, ScalarType::Float));
  float* data = affinity.mutable_data_ptr<float>();

  const int64_t panels = divide_up(keys, loops.lanes), panel_size = channels * loops.lanes;
  const Buffer packed_keys(batch * panels * panel_size, "packed keys");
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t p = 0; p < panels; ++p) {
      pack_tokens(key_tokens, b, p * loops.lanes, keys, channels, loops.lanes,
                  static_cast<float>(scale), packed_keys.get() + (b * panels + p) * panel_size);
    }
  }
  const int64_t strips = divide_up(queries, loops.rows);
  const int64_t block_size = int64_t{loops.rows} * loops.lanes;
  const Workspace workspace{block_size + channels * loops.rows, "packed queries"};
  for_each_tile(batch * strips, workspace, [&](const auto& take, float* block) {
    float* strip = block + block_size;
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t b = t / strips, first = t % strips * loops.rows;
      pack_tokens(query_tokens, b, first, queries, channels, loops.rows, 1.0f, strip);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t key = p * loops.lanes;
        loops.product(channels, strip, packed_keys.get() + (b * panels + p) * panel_size, block);
        loops.finish_block(block, {.bias = nullptr,
                                   .residual = nullptr,
                                   .residual_channel = 0,
                                   .residual_token = 0,
                                   .out = data + (b * queries + first) * keys + key,
                                   .out_channel = keys,
                                   .out_token = 1,
                                   .rows = std::min<int64_t>(loops.rows, queries - first),
                                   .lanes = std::min<int64_t>(loops.lanes, keys - key),
                                   .relu = false});
      }
    }
  });
  return affinity;
}

Tensor pooled_affinity(const Tensor& q, const Tensor& k, int64_t stride, const std::string& mode,
                       std::optional<double> scale, bool allow_tf32) {
  const MatrixShape shape = check_pooled_affinity(q, k, stride, mode);
  if (is_double(q)) {
    return call_operator("tdnet_reference::pooled_affinity", q, k, stride, mode, scale,
                         allow_tf32)[0];
  }
  Tensor keys = to_float(k);
  if (stride > 1) keys = pool(keys, keys, stride, mode);
  const Tensor affinity =
      pooled_affinity_float(shape, to_float(q), keys, scale_or_default(scale, q.size(1)));
  return from_float(affinity, q.scalar_type());
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("pooled_affinity", TORCH_BOX(&tdnet::cpu::pooled_affinity));
}
