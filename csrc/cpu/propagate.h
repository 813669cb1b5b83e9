// softmax(logits) values + bias + residual, tile by tile: the core of attention_propagate and
// softmax_propagate. The logits of a tile live in the second-level cache and nowhere else.
// Its product of values and weights is the backward pass's of keys and gradients of logits too.

#pragma once

#include <array>
#include <functional>
#include <optional>

#include "tile.h"

namespace tdnet::cpu {

struct Values {
  Tokens tokens;  // [batch, channels, keys]
  int64_t channels, keys;
};

struct Propagation {
  int64_t batch, queries;  // every head counts as a batch
  Values values;
  Output output;       // [batch, channels, queries]
  float* log_sum_exp;  // of the logits, [batch, queries], or null
};

struct Logits {
  // Writes the logits of the queries first .. first+lanes-1 of batch b as a panel
  // [round_up(keys, rows), lanes]; lanes past the last query may hold anything finite.
  std::function<void(const TileLoops& loops, int64_t b, int64_t first, float* workspace,
                     float* panel)>
      fill;
  int64_t workspace;  // floats that a thread needs for it
  // Called before those of the batches first_batch .. first_batch+count-1, if it is given.
  std::function<void(int64_t first_batch, int64_t count)> prepare = {};
};

// The values of some batches as strips: for every block of `depth` keys, for every strip of
// channels, [keys of the block, rows]. Of a batch, round_up(channels, rows) * keys floats.
void pack_values(const Values& values, int64_t first_batch, int64_t count, float* out);

// sums [panels][strips of channels][rows, lanes] = values^T weights for one tile. `packed` are the
// values of its batch; panels of weights are `panel_size` floats apart.
void multiply_values(const Values& values, const Tile& tile, const float* packed,
                     int64_t panel_size, const float* weights, float* sums);

void propagate(const Propagation& problem, const Logits& logits);

struct Projection {
  std::optional<torch::stable::Tensor> residual, weight, bias;
};

// phi(softmax(logits) v) + residual as a map of `shape` [B, d_out, H, W] in the layout of `like`;
// folds phi into the values where that costs fewer operations, and it mixes no heads. `log_sum_exp`
// as of Propagation.
torch::stable::Tensor propagate_projected(const torch::stable::Tensor& like,
                                          const std::array<int64_t, 4>& shape,
                                          const torch::stable::Tensor& v,
                                          const Projection& projection, const Logits& logits,
                                          int64_t heads = 1, float* log_sum_exp = nullptr);

}  // namespace tdnet::cpu
