#include "tile.h"

#include <array>
#include <cstring>

#define TDNET_LOOPS "tile_loops.h"
#include "for_each_instruction_set.h"

namespace tdnet::cpu {

const TileLoops& tile_loops(int64_t tokens) {
  static const auto of_vectors = TDNET_DISPATCH(tile_loops);
  static const std::array<TileLoops, 3> all{of_vectors(1), of_vectors(2), of_vectors(3)};
  for (const TileLoops& loops : all) {
    if (tokens <= loops.lanes) return loops;
  }
  return all.back();
}

Tokens tokens(torch::stable::Tensor& map, int64_t heads) {
  const bool even =
      map.size(2) == 1 || map.size(3) == 1 || map.stride(2) == map.size(3) * map.stride(3);
  if (!even) map = torch::stable::contiguous(map);
  return {.data = map.const_data_ptr<float>(),
          .batch = map.stride(0),
          .channel = map.stride(1),
          .token = map.size(3) == 1 ? map.stride(2) : map.stride(3),
          .heads = heads,
          .head = map.size(1) / heads * map.stride(1)};
}

Output::Output(const torch::stable::Tensor& map, const std::optional<torch::stable::Tensor>& bias,
               const std::optional<torch::stable::Tensor>& residual, bool relu, int64_t heads)
    : residual_(residual),
      data_(map.mutable_data_ptr<float>()),
      batch_(map.stride(0)),
      channel_(map.stride(1)),
      token_(map.stride(3)),
      heads_(heads),
      channels_(map.size(1) / heads),
      count_(map.size(2) * map.size(3)),
      relu_(relu) {
  if (bias) bias_ = torch::stable::contiguous(*bias);
  if (residual_) residual_tokens_ = tokens(*residual_, heads);
}

Epilogue Output::epilogue(int64_t b, int64_t channel, int64_t token) const {
  const int64_t of_map = b % heads_ * channels_ + channel;
  return {.bias = bias_ ? bias_->const_data_ptr<float>() + of_map : nullptr,
          .residual = residual_tokens_ ? residual_tokens_->at(b, channel, token) : nullptr,
          .residual_channel = residual_tokens_ ? residual_tokens_->channel : 0,
          .residual_token = residual_tokens_ ? residual_tokens_->token : 0,
          .out = data_ + b / heads_ * batch_ + of_map * channel_ + token * token_,
          .out_channel = channel_,
          .out_token = token_,
          .rows = std::min<int64_t>(tile_loops().rows, channels_ - channel),
          .lanes = std::min<int64_t>(tile_loops().lanes, count_ - token),
          .relu = relu_};
}

void finish_tile(const Output& output, const Strips& strips, const Tile& tile, float* sums) {
  const int64_t rows = tile_loops().rows, most_lanes = tile_loops().lanes;
  for (int64_t p = 0; p < tile.panels; ++p) {
    const auto finish_block = tile.loops(p).finish_block;
    const int64_t token = tile.token(p);
    for (int64_t strip = strips.first; strip < strips.end; ++strip, sums += rows * most_lanes) {
      finish_block(sums, output.epilogue(tile.b, strip * rows, token));
    }
  }
}

void pack_tokens(const Tokens& source, int64_t b, int64_t first, int64_t end, int64_t channels,
                 int width, float factor, float* out) {
  const int64_t valid = std::min<int64_t>(width, end - first);
  const TileLoops& loops = tile_loops(width);
  if (source.channel == 1 && (width == loops.lanes || width == loops.rows)) {
    const float* rows[kMostLanes];
    const float* row = source.at(b, 0, first);
    for (int64_t i = 0; i < width; ++i) rows[i] = i < valid ? row + i * source.token : nullptr;
    if (width == loops.rows) return loops.pack_strip(rows, channels, factor, out);
    return loops.pack_rows(rows, 0, channels, factor, out);
  }
  for (int64_t c = 0; c < channels; ++c) {
    const float* row = source.at(b, c, first);
    float* to = out + c * width;
    if (source.token == 1) {
      for (int64_t i = 0; i < valid; ++i) to[i] = row[i] * factor;
    } else {
      for (int64_t i = 0; i < valid; ++i) to[i] = row[i * source.token] * factor;
    }
    for (int64_t i = valid; i < width; ++i) to[i] = 0;
  }
}

void pack_channels(const Tokens& source, int64_t b, int64_t first_token, int64_t token_count,
                   int64_t first_channel, int64_t end_channel, int width, float* out) {
  const int64_t valid = std::min<int64_t>(width, end_channel - first_channel);
  const float* row = source.at(b, first_channel, first_token);
  const TileLoops& loops = tile_loops();
  if (source.channel == 1 && valid == width && width == loops.rows) {
    return loops.copy_strip(row, source.token, token_count, out);
  }
  for (int64_t i = 0; i < token_count; ++i, row += source.token) {
    float* to = out + i * width;
    for (int64_t r = 0; r < valid; ++r) to[r] = row[r * source.channel];
    for (int64_t r = valid; r < width; ++r) to[r] = 0;
  }
}

}  // namespace tdnet::cpu
