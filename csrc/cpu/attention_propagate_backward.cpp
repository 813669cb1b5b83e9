// attention_propagate_backward: gradients of q, k, v and phi. The affinity is computed again, a
// tile of queries at a time, and never stored.
//
// With g the gradient of the result, u that of the log-sum-exp, and values that carry phi:
//   weights          P  = exp(k q^T scale - log_sum_exp)             [keys, queries]
//   of the weights   dP = values g^T                                 [keys, queries]
//   of the logits    dS = scale P (dP - sum over keys of P dP + u)   [keys, queries]
//   dq = k^T dS,  dk = q^T dS^T,  dvalues = g^T P^T
// Panels of queries give the first four, as in the forward pass. The last two are sums over
// queries: there P and dS are transposed into panels of keys.
//
// The queries of a map are shared out in parts with sums of their own, as many as the number of
// threads asks for, which are added in order: no result depends on which thread ran what.

#include <torch/csrc/stable/library.h>

#include <limits>
#include <numeric>

#include "../checks.h"
#include "convolve.h"
#include "dtypes.h"
#include "propagate.h"

namespace tdnet::cpu {
namespace {

struct Gradient {
  int64_t batch, queries;  // every head counts as a batch
  Values keys, values;     // values carry phi
  Tokens q, grad;
  float scale;
  const float* log_sum_exp;       // [batch, queries]
  const float* grad_log_sum_exp;  // [batch, queries] or null
  Output grad_q;                  // [batch, key channels, queries]
  Output grad_k, grad_values;     // [batch, channels, keys]
};

int64_t strips_of(int64_t count) { return divide_up(count, int64_t{tile_loops().rows}); }
int64_t whole_strips(int64_t count) { return strips_of(count) * tile_loops().rows; }

// Sizes in floats.
struct Plan {
  int64_t tile_panels, tile_queries, tiles, parts;
  int64_t panel_size;                               // weights of a panel of queries
  int64_t keys_size, values_size, key_blocks_size;  // packed, of a map
  int64_t key_panels, key_panel_sums, part_sums;    // sums of a panel of keys, and of all

  explicit Plan(const Gradient& problem) {
    // Enough for a sum over queries to amortise that it is loaded and stored.
    constexpr int64_t kTileQueries = 64;
    const int64_t lanes = tile_loops().lanes, keys = problem.keys.keys;
    const int64_t key_channels = problem.keys.channels, value_channels = problem.values.channels;
    tile_panels = divide_up(kTileQueries, lanes);
    tile_queries = tile_panels * lanes;
    tiles = divide_up(problem.queries, tile_queries);
    panel_size = whole_strips(keys) * lanes;
    keys_size = whole_strips(keys) * key_channels;
    values_size = whole_strips(keys) * value_channels;
    key_blocks_size = whole_strips(key_channels) * keys;
    key_panels = divide_up(keys, lanes);
    key_panel_sums = (whole_strips(key_channels) + whole_strips(value_channels)) * lanes;
    part_sums = key_panels * key_panel_sums;
    // The fewest that give every thread as much, as long as their sums take no more than the
    // affinity, its gradient and that of the logits would, or 4 MB.
    constexpr int64_t kSmall = 1024 * 1024;
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t most_sums = std::max(3 * problem.queries * keys, kSmall);
    const int64_t affordable = std::max<int64_t>(1, most_sums / part_sums);
    parts = std::min({tiles, threads / std::gcd(threads, problem.batch), affordable});
  }
};

// Keys and values of some maps.
struct Packed {
  Buffer keys, values;  // strips [channels, rows of keys], the keys scaled
  Buffer key_blocks;    // as of pack_values()

  Packed(const Plan& plan, int64_t maps)
      : keys(maps * plan.keys_size, "packed keys"),
        values(maps * plan.values_size, "packed values"),
        key_blocks(maps * plan.key_blocks_size, "packed keys") {}

  void fill(const Gradient& problem, int64_t first_batch, int64_t count) const {
    const int64_t strips = strips_of(problem.keys.keys);
    const auto pack_strip = [&](const Values& source, int64_t t, float factor, float* to) {
      const int rows = tile_loops().rows;
      pack_tokens(source.tokens, first_batch + t / strips, t % strips * rows, source.keys,
                  source.channels, rows, factor, to + t * source.channels * rows);
    };
    for_each_tile(count * strips, [&](const auto& take) {
      for (int64_t t = take(); t >= 0; t = take()) {
        pack_strip(problem.keys, t, problem.scale, keys.get());
        pack_strip(problem.values, t, 1.0f, values.get());
      }
    });
    pack_values(problem.keys, first_batch, count, key_blocks.get());
  }
};

// A tile's tokens of q or grad.
struct TileTokens {
  float* panels;  // [channels, lanes of queries]
  float* strips;  // [queries, rows of channels]

  void fill(const Tokens& source, const Tile& tile, int64_t channels) const {
    const int64_t end = tile.first + tile.count;
    for (int64_t p = 0; p < tile.panels; ++p) {
      pack_tokens(source, tile.b, tile.token(p), end, channels, tile.loops(p).lanes, 1.0f,
                  panels + p * channels * tile_loops().lanes);
    }
    for (int64_t c = 0; c < channels; c += tile_loops().rows) {
      pack_channels(source, tile.b, tile.first, tile.count, c, channels, tile_loops().rows,
                    strips + c * tile.count);
    }
  }
};

// A thread's memory for one tile.
struct Scratch {
  float *weights, *grad_logits;  // panels [keys, lanes of queries]
  TileTokens q, grad;
  float* grad_q;
  float* key_panel;  // [queries, lanes of keys]

  // Returns the number of floats from `base` on.
  int64_t place(const Gradient& problem, const Plan& plan, float* base) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* const at = base ? base + used : nullptr;
      used += round_up(floats, 16);
      return at;
    };
    const int64_t key_depth = whole_strips(problem.keys.channels) * plan.tile_queries;
    const int64_t value_depth = whole_strips(problem.values.channels) * plan.tile_queries;
    weights = take(plan.tile_panels * plan.panel_size);
    grad_logits = take(plan.tile_panels * plan.panel_size);
    q = {take(key_depth), take(key_depth)};
    grad = {take(value_depth), take(value_depth)};
    grad_q = take(key_depth);
    key_panel = take(plan.tile_queries * tile_loops().lanes);
    return used;
  }
};

// out, panels [keys, lanes] = strips [channels, rows of keys] times panels [channels, lanes].
void multiply_keys(const Plan& plan, const Tile& tile, int64_t channels, int64_t strips,
                   const float* packed, const float* panels, float* out) {
  const int64_t rows = tile_loops().rows, depth = tile_loops().depth;
  for (int64_t c = 0; c < channels; c += depth) {
    const int64_t count = std::min(depth, channels - c);
    for (int64_t strip = 0; strip < strips; ++strip) {
      for (int64_t p = 0; p < tile.panels; ++p) {
        const TileLoops& loops = tile.loops(p);
        const auto product = c == 0 ? loops.product : loops.product_add;
        product(count, packed + (strip * channels + c) * rows,
                panels + p * channels * tile_loops().lanes + c * loops.lanes,
                out + p * plan.panel_size + strip * rows * loops.lanes);
      }
    }
  }
}

// Turns a panel of logits into weights, and the gradients of weights into those of logits.
void softmax_gradient(const Gradient& problem, const Tile& tile, int64_t p, float* weights,
                      float* grads) {
  float log_sum_exp[kMostLanes] = {}, shift[kMostLanes] = {};
  const int64_t row = tile.b * problem.queries + tile.token(p);
  for (int64_t i = 0; i < tile.lanes(p); ++i) {
    const float value = problem.log_sum_exp[row + i];
    // As torch's softmax: a row with +inf is NaN, its finite keys too.
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    log_sum_exp[i] = value == kInfinity ? std::numeric_limits<float>::quiet_NaN() : value;
    if (problem.grad_log_sum_exp) shift[i] = problem.grad_log_sum_exp[row + i];
  }
  tile.loops(p).softmax_gradient_panel(weights, grads, problem.keys.keys, log_sum_exp, shift,
                                       problem.scale);
}

// A panel of keys [queries of the tile, lanes] from panels of queries [keys, lanes].
void transpose_keys(const Gradient& problem, const Plan& plan, const Tile& tile,
                    const float* panels, int64_t first_key, const TileLoops& to, float* out) {
  for (int64_t p = 0; p < tile.panels; ++p) {
    const float* rows[kMostLanes];
    for (int64_t i = 0; i < to.lanes; ++i) {
      const int64_t key = first_key + i;
      rows[i] = key < problem.keys.keys ? panels + p * plan.panel_size + key * tile.loops(p).lanes
                                        : nullptr;
    }
    to.pack_rows(rows, 0, tile.lanes(p), 1.0f, out + p * tile_loops().lanes * to.lanes);
  }
}

// Adds one tile to the sums over queries, or begins them with it.
void add_queries(const Gradient& problem, const Plan& plan, const Tile& tile,
                 const Scratch& scratch, bool begins, float* sums) {
  const int64_t rows = tile_loops().rows, lanes = tile_loops().lanes;
  for (int64_t first_key = 0; first_key < problem.keys.keys; first_key += lanes) {
    const TileLoops& loops = tile_loops(problem.keys.keys - first_key);
    const auto product = begins ? loops.product : loops.product_add;
    const auto add = [&](const float* panels, const float* strips, int64_t channels) {
      transpose_keys(problem, plan, tile, panels, first_key, loops, scratch.key_panel);
      for (int64_t c = 0; c < channels; c += rows, sums += rows * lanes) {
        product(tile.count, strips + c * tile.count, scratch.key_panel, sums);
      }
    };
    add(scratch.grad_logits, scratch.q.strips, problem.keys.channels);
    add(scratch.weights, scratch.grad.strips, problem.values.channels);
  }
}

void differentiate_tile(const Gradient& problem, const Plan& plan, const Tile& tile,
                        const float* keys, const float* values, const float* key_blocks,
                        const Scratch& scratch) {
  const int64_t strips = strips_of(problem.keys.keys);
  scratch.q.fill(problem.q, tile, problem.keys.channels);
  scratch.grad.fill(problem.grad, tile, problem.values.channels);
  multiply_keys(plan, tile, problem.keys.channels, strips, keys, scratch.q.panels, scratch.weights);
  multiply_keys(plan, tile, problem.values.channels, strips, values, scratch.grad.panels,
                scratch.grad_logits);
  for (int64_t p = 0; p < tile.panels; ++p) {
    softmax_gradient(problem, tile, p, scratch.weights + p * plan.panel_size,
                     scratch.grad_logits + p * plan.panel_size);
  }
  multiply_values(problem.keys, tile, key_blocks, plan.panel_size, scratch.grad_logits,
                  scratch.grad_q);
  finish_tile(problem.grad_q, {0, strips_of(problem.keys.channels)}, tile, scratch.grad_q);
}

// Adds up the parts of some maps and stores the gradients of keys and values.
void finish_keys(const Gradient& problem, const Plan& plan, int64_t first_batch, int64_t count,
                 float* sums) {
  const int64_t rows = tile_loops().rows, lanes = tile_loops().lanes;
  for_each_tile(count * plan.key_panels, [&](const auto& take) {
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t b = t / plan.key_panels, panel = t % plan.key_panels;
      float* sum = sums + b * plan.parts * plan.part_sums + panel * plan.key_panel_sums;
      for (int64_t part = 1; part < plan.parts; ++part) {
        const float* other = sum + part * plan.part_sums;
        for (int64_t i = 0; i < plan.key_panel_sums; ++i) sum[i] += other[i];
      }
      const TileLoops& loops = tile_loops(problem.keys.keys - panel * lanes);
      const auto finish = [&](const Output& output, int64_t channels) {
        for (int64_t c = 0; c < channels; c += rows, sum += rows * lanes) {
          loops.finish_block(sum, output.epilogue(first_batch + b, c, panel * lanes));
        }
      };
      finish(problem.grad_k, problem.keys.channels);
      finish(problem.grad_values, problem.values.channels);
    }
  });
}

void differentiate(const Gradient& problem) {
  const Plan plan(problem);
  // 16 MB of what is packed and summed for as many maps at once as fit.
  constexpr int64_t kAtOnce = 4 * 1024 * 1024;
  const int64_t map_size =
      plan.keys_size + plan.values_size + plan.key_blocks_size + plan.parts * plan.part_sums;
  const int64_t group = std::max<int64_t>(1, std::min(kAtOnce / map_size, problem.batch));
  const Packed packed(plan, group);
  const Buffer sums(group * plan.parts * plan.part_sums, "gradients of keys and values");
  const Workspace workspace{Scratch().place(problem, plan, nullptr), "logits of the threads"};
  for (int64_t first_batch = 0; first_batch < problem.batch; first_batch += group) {
    const int64_t count = std::min(group, problem.batch - first_batch);
    packed.fill(problem, first_batch, count);
    for_each_tile(count * plan.parts, workspace, [&](const auto& take, float* base) {
      Scratch scratch;
      scratch.place(problem, plan, base);
      for (int64_t t = take(); t >= 0; t = take()) {
        const int64_t b = t / plan.parts, part = t % plan.parts;
        const int64_t first = part * plan.tiles / plan.parts;
        for (int64_t i = first; i < (part + 1) * plan.tiles / plan.parts; ++i) {
          const Tile tile(first_batch + b, i * plan.tile_queries, problem.queries,
                          plan.tile_panels);
          differentiate_tile(problem, plan, tile, packed.keys.get() + b * plan.keys_size,
                             packed.values.get() + b * plan.values_size,
                             packed.key_blocks.get() + b * plan.key_blocks_size, scratch);
          add_queries(problem, plan, tile, scratch, i == first, sums.get() + t * plan.part_sums);
        }
      }
    });
    finish_keys(problem, plan, first_batch, count, sums.get());
  }
}

// [B, C, H, W] -> [C, B * H * W].
Tensor channel_rows(const Tensor& map) {
  const Tensor rows = torch::stable::transpose(torch::stable::flatten(map, 2, 3), 0, 1);
  return torch::stable::flatten(rows, 1, 2);
}

void fill_with_zeros(const Tensor& x) { std::fill_n(x.mutable_data_ptr<float>(), x.numel(), 0.0f); }

struct Gradients {
  Tensor q, k, v, weight;
};

// Arguments of any dtype but float64, checked.
Gradients gradients_in_float(const MapShape& shape, const Tensor& of_result,
                             std::optional<Tensor> grad_log_sum_exp, const Tensor& queries,
                             const Tensor& keys, const Tensor& unfolded,
                             const std::optional<Tensor>& phi, const Tensor& log_sum_exp,
                             std::optional<double> scale, int64_t heads) {
  // In the layout of the argument: a float32 copy may have another.
  const auto like = [](const Tensor& x, int64_t channels) {
    return empty_float_map(x, {x.size(0), channels, x.size(2), x.size(3)});
  };
  const Tensor grad_q = like(queries, queries.size(1)), grad_k = like(keys, keys.size(1));
  const Tensor grad_values = like(unfolded, shape[1]);
  Tensor q = to_float(queries), k = to_float(keys), v = to_float(unfolded);
  Tensor grad = to_float(of_result);
  const std::optional<Tensor> weight = to_float(phi);
  const int64_t channels = q.size(1) / heads, value_channels = shape[1] / heads;
  const int64_t key_count = k.size(2) * k.size(3);
  const Tensor rows = torch::stable::contiguous(log_sum_exp);
  if (grad_log_sum_exp) grad_log_sum_exp = torch::stable::contiguous(*grad_log_sum_exp);
  Tensor values = v;
  if (weight) {
    const std::array<int64_t, 4> size{shape[1], v.size(1), 1, 1};
    values = convolve_blocks(v, {v.size(0), shape[1], v.size(2), v.size(3)}, {v},
                             {torch::stable::reshape(*weight, size)}, {}, {}, {});
  }
  const int64_t query_count = shape[2] * shape[3];
  if (grad.numel() == 0) {
    fill_with_zeros(grad_k);
    fill_with_zeros(grad_values);
  } else {
    differentiate(
        {.batch = shape[0] * heads,
         .queries = query_count,
         .keys = {tokens(k, heads), channels, key_count},
         .values = {tokens(values, heads), value_channels, key_count},
         .q = tokens(q, heads),
         .grad = tokens(grad, heads),
         .scale = static_cast<float>(scale_or_default(scale, channels)),
         .log_sum_exp = rows.const_data_ptr<float>(),
         .grad_log_sum_exp = grad_log_sum_exp ? grad_log_sum_exp->const_data_ptr<float>() : nullptr,
         .grad_q = Output(grad_q, {}, {}, false, heads),
         .grad_k = Output(grad_k, {}, {}, false, heads),
         .grad_values = Output(grad_values, {}, {}, false, heads)});
  }
  if (!weight) {
    const std::array<int64_t, 1> none{0};
    return {grad_q, grad_k, grad_values, new_result(q, none, ScalarType::Float)};
  }
  // phi^T of the gradient of the folded values, and the gradient of phi: sums over keys.
  const std::array<int64_t, 4> size{v.size(1), shape[1], 1, 1};
  const Tensor transposed = torch::stable::reshape(torch::stable::transpose(*weight, 0, 1), size);
  const Tensor value_rows = torch::stable::transpose(channel_rows(v), 0, 1);
  return {grad_q, grad_k,
          convolve_blocks(unfolded, {v.size(0), v.size(1), v.size(2), v.size(3)}, {grad_values},
                          {transposed}, {}, {}, {}),
          torch::stable::matmul(channel_rows(grad_values), value_rows)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_propagate_backward(
    const Tensor& grad, const std::optional<Tensor>& grad_log_sum_exp, const Tensor& q,
    const Tensor& k, const Tensor& v, const std::optional<Tensor>& weight,
    const Tensor& log_sum_exp, std::optional<double> scale, int64_t heads, bool allow_tf32) {
  const MapShape shape = check_attention_propagate_backward(grad, grad_log_sum_exp, q, k, v, weight,
                                                            log_sum_exp, heads);
  if (is_double(q)) {
    const auto results =
        call_operator<4>("tdnet_reference::attention_propagate_backward", grad, grad_log_sum_exp, q,
                         k, v, weight, log_sum_exp, scale, heads, allow_tf32);
    return {results[0], results[1], results[2], results[3]};
  }
  const Gradients found =
      gradients_in_float(shape, grad, grad_log_sum_exp, q, k, v, weight, log_sum_exp, scale, heads);
  return {from_float(found.q, q.scalar_type()), from_float(found.k, k.scalar_type()),
          from_float(found.v, v.scalar_type()), from_float(found.weight, q.scalar_type())};
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("attention_propagate_backward", TORCH_BOX(&tdnet::cpu::attention_propagate_backward));
}
