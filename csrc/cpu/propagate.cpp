#include "propagate.h"

#include <array>

#include "../folding.h"
#include "convolve.h"
#include "dtypes.h"

namespace tdnet::cpu {
namespace {

// Panels of queries that share one pass over the values: as many as keep the logits near half a
// megabyte and leave every thread a tile, at most four.
int64_t panels_in_tile(const Propagation& problem, const TileLoops& loops) {
  constexpr int64_t kLogits = 128 * 1024;
  const int64_t panels = problem.batch * divide_up(problem.queries, int64_t{loops.lanes});
  const int64_t of_a_thread = panels / torch::stable::get_num_threads();
  const int64_t in_cache = kLogits / (problem.values.keys * loops.lanes);
  return std::clamp<int64_t>(std::min(in_cache, of_a_thread), 1, 4);
}

// Turns the logits of one panel of queries into weights.
void softmax(const Propagation& problem, const Tile& tile, int64_t p, float* panel) {
  const TileLoops& loops = tile.loops(p);
  const int64_t keys = problem.values.keys;
  if (!problem.log_sum_exp) return loops.softmax_panel(panel, keys, nullptr);
  float log_sum_exp[kMostLanes];
  loops.softmax_panel(panel, keys, log_sum_exp);
  std::copy_n(log_sum_exp, tile.lanes(p),
              problem.log_sum_exp + tile.b * problem.queries + tile.token(p));
}

}  // namespace

void pack_values(const Values& values, int64_t first_batch, int64_t count, float* out) {
  const TileLoops& loops = tile_loops();
  const int64_t strips = divide_up(values.channels, loops.rows);
  const int64_t blocks = divide_up(values.keys, loops.depth);
  for_each_tile(count * blocks, [&](const auto& take) {
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t b = t / blocks, first = t % blocks * loops.depth;
      const int64_t keys = std::min<int64_t>(loops.depth, values.keys - first);
      float* to = out + (b * values.keys + first) * strips * loops.rows;
      for (int64_t strip = 0; strip < strips; ++strip) {
        pack_channels(values.tokens, first_batch + b, first, keys, strip * loops.rows,
                      values.channels, loops.rows, to + strip * keys * loops.rows);
      }
    }
  });
}

void multiply_values(const Values& values, const Tile& tile, const float* packed,
                     int64_t panel_size, const float* weights, float* sums) {
  const int64_t rows = tile_loops().rows, most_lanes = tile_loops().lanes;
  const int64_t depth = tile_loops().depth, strips = divide_up(values.channels, rows);
  for (int64_t key = 0; key < values.keys; key += depth) {
    const int64_t count = std::min(depth, values.keys - key);
    for (int64_t p = 0; p < tile.panels; ++p) {
      const TileLoops& loops = tile.loops(p);
      const auto product = key == 0 ? loops.product : loops.product_add;
      const float* panel = weights + p * panel_size + key * loops.lanes;
      for (int64_t strip = 0; strip < strips; ++strip) {
        product(count, packed + (key * strips + strip * count) * rows, panel,
                sums + (p * strips + strip) * rows * most_lanes);
      }
    }
  }
}

void propagate(const Propagation& problem, const Logits& logits) {
  const TileLoops& loops = tile_loops();
  const Values& values = problem.values;
  const int64_t strips = divide_up(values.channels, loops.rows);
  const int64_t panel_size = round_up(values.keys, loops.rows) * loops.lanes;
  const int64_t tile_panels = panels_in_tile(problem, loops);
  const int64_t tile_queries = tile_panels * loops.lanes;
  const int64_t panels_size = tile_panels * panel_size;
  const int64_t sums_size = tile_panels * strips * loops.rows * loops.lanes;
  const Workspace workspace{panels_size + sums_size + logits.workspace, "logits of the threads"};
  const int64_t values_size = strips * loops.rows * values.keys;
  const int64_t tiles = divide_up(problem.queries, tile_queries);
  // As many batches at once as keep what is packed in the cache.
  constexpr int64_t kPacked = 128 * 1024;
  const int64_t group = std::max<int64_t>(1, std::min(kPacked / values_size, problem.batch));
  const Buffer packed(group * values_size, "packed values");
  for (int64_t first_batch = 0; first_batch < problem.batch; first_batch += group) {
    const int64_t count = std::min(group, problem.batch - first_batch);
    if (logits.prepare) logits.prepare(first_batch, count);
    pack_values(values, first_batch, count, packed.get());
    for_each_tile(count * tiles, workspace, [&](const auto& take, float* weights) {
      float* sums = weights + panels_size;
      for (int64_t t = take(); t >= 0; t = take()) {
        const Tile tile(first_batch + t / tiles, t % tiles * tile_queries, problem.queries,
                        tile_panels);
        for (int64_t p = 0; p < tile.panels; ++p) {
          float* panel = weights + p * panel_size;
          logits.fill(tile.loops(p), tile.b, tile.token(p), sums + sums_size, panel);
          softmax(problem, tile, p, panel);
        }
        multiply_values(values, tile, packed.get() + t / tiles * values_size, panel_size, weights,
                        sums);
        finish_tile(problem.output, {0, strips}, tile, sums);
      }
    });
  }
}

namespace {

// v W^T: [B, d_v, h, w] -> tokens [B, d_out, M].
Tensor fold(const Tensor& v, const Tensor& weight) {
  Tensor flat = torch::stable::flatten(v, 2, 3);
  Tensor values = torch::stable::transpose(flat, 1, 2);
  return torch::stable::matmul(values, torch::stable::transpose(weight, 0, 1));
}

}  // namespace

Tensor propagate_projected(const Tensor& like, const std::array<int64_t, 4>& shape, const Tensor& v,
                           const Projection& projection, const Logits& logits, int64_t heads,
                           float* log_sum_exp) {
  const auto [batch, channels, height, width] = shape;
  const int64_t queries = height * width, keys = v.size(2) * v.size(3);
  const auto folds = [&] { return folding_is_cheaper(queries, keys, v.size(1), channels); };
  if (projection.weight && (heads > 1 || !folds())) {
    const Tensor attended = propagate_projected(like, {batch, v.size(1), height, width}, v, {},
                                                logits, heads, log_sum_exp);
    const std::array<int64_t, 4> size{channels, v.size(1), 1, 1};
    const Tensor weight = torch::stable::reshape(*projection.weight, size);
    return convolve_blocks(like, shape, {attended}, {weight}, projection.bias, projection.residual,
                           {});
  }
  Tensor values = projection.weight ? fold(v, *projection.weight) : v;
  const Tokens value_tokens = projection.weight
                                  ? Tokens{values.const_data_ptr<float>(), values.stride(0),
                                           values.stride(2), values.stride(1)}
                                  : tokens(values, heads);
  const Tensor out = empty_float_map(like, shape);
  propagate({.batch = batch * heads,
             .queries = queries,
             .values = {value_tokens, channels / heads, keys},
             .output = Output(out, projection.bias, projection.residual, false, heads),
             .log_sum_exp = log_sum_exp},
            logits);
  return out;
}

}  // namespace tdnet::cpu
