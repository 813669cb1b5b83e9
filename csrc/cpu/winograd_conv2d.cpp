// winograd_conv2d: a 3x3 convolution, of stride 1 and of any dilation, padded to the size of the
// map, by Winograd's F(4x4, 3x3): 36 products of matrices in place of 16 * 9, a quarter of the
// multiplications.
//
//   x [B, H, W, C] -> tiles of 6x6 pixels, 4 apart, of the map of every phase: a dilation is a
//   stride between the pixels of a tile.
//   V[position] = B^T tile B [C, tiles], M[position] = U[position] V[position] [C_out, tiles],
//   4x4 pixels of the result = A^T M A.
//
// A thread takes a group of tiles at a time: all of V, then U and M for one panel of output
// channels after the other. Memory a thread, at 512 channels and 192 tiles: V 14 MB, M 1.3 MB, a
// panel of weights 0.1 MB. U is read once a group.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "../checks.h"
#include "dtypes.h"
#include "tile.h"

#define TDNET_LOOPS "winograd_loops.h"
#include "for_each_instruction_set.h"

namespace tdnet::cpu {
namespace {

constexpr int kPositions = 36;  // of a transformed tile
constexpr int kSide = 4;        // pixels of the result along the side of a tile

// The top left pixel of a tile of the result.
struct Origin {
  int64_t y, x;
};

// Of all tiles of a map: the pixels of a phase are `dilation` apart.
std::vector<Origin> tile_origins(int64_t height, int64_t width, int64_t dilation) {
  std::vector<Origin> origins;
  const int64_t step = kSide * dilation;
  for (int64_t y_phase = 0; y_phase < std::min(dilation, height); ++y_phase) {
    for (int64_t x_phase = 0; x_phase < std::min(dilation, width); ++x_phase) {
      for (int64_t y = y_phase; y < height; y += step) {
        for (int64_t x = x_phase; x < width; x += step) origins.push_back({y, x});
      }
    }
  }
  return origins;
}

struct Convolution {
  int64_t height, width, channels, out_channels, dilation;
  const float* x;         // [B, H, W, C]
  const float* weight;    // [36, C_out, C]
  const float* bias;      // [C_out] or null
  const float* residual;  // [B, H, W, C_out] or null
  float* out;             // [B, H, W, C_out]
  bool relu;
  std::vector<Origin> origins;
};

// Sizes in floats.
struct Plan {
  int64_t strips;           // of tiles in a group
  int64_t groups;           // of a map
  int64_t padded_channels;  // whole vectors of them
  int64_t inputs_size;      // V of a group, strips [channels, rows of tiles]
  int64_t tiles_size;       // the transformed tiles of one strip
  int64_t panel_size;       // U of one position, [channels, lanes of output channels]
  int64_t sums_size;        // M of one panel

  explicit Plan(const Convolution& problem, int64_t batch) {
    const int64_t rows = tile_loops().rows, lanes = tile_loops().lanes;
    // Enough tiles to amortise the weights, as long as their transforms stay below 16 MB.
    constexpr int64_t kTiles = 192, kInputs = 4 * 1024 * 1024;
    const int64_t of_map = divide_up<int64_t>(problem.origins.size(), rows);
    const int64_t affordable = kInputs / (kPositions * problem.channels * rows);
    const int64_t most = std::clamp<int64_t>(affordable, 1, kTiles / rows);
    // As many groups for each thread.
    const int64_t threads = torch::stable::get_num_threads();
    groups = divide_up(round_up(batch * divide_up(of_map, most), threads), batch);
    strips = divide_up(of_map, groups);
    groups = divide_up(of_map, strips);
    padded_channels = round_up(problem.channels, int64_t{kMostLanes});
    inputs_size = kPositions * strips * problem.channels * rows;
    tiles_size = rows * kPositions * padded_channels;
    panel_size = problem.channels * lanes;
    sums_size = kPositions * strips * rows * lanes;
  }
  int64_t workspace() const { return inputs_size + tiles_size + panel_size + sums_size; }
};

// The pixel (y, x) of one map [H, W, channels], null outside.
template <typename Number>
Number* pixel(const Convolution& problem, Number* map, int64_t channels, int64_t y, int64_t x) {
  const bool inside = y >= 0 && y < problem.height && x >= 0 && x < problem.width;
  return inside ? map + (y * problem.width + x) * channels : nullptr;
}

// V of some tiles, [positions][strips][channels, rows]. `tiles` is memory for a strip of them.
void transform_tiles(const Convolution& problem, const Plan& plan, int64_t b, int64_t first,
                     int64_t count, float* tiles, float* inputs) {
  const auto transform = TDNET_DISPATCH(transform_input);
  const int64_t rows = tile_loops().rows, channels = problem.channels;
  const int64_t tile_size = kPositions * plan.padded_channels;
  const float* const map = problem.x + b * problem.height * problem.width * channels;
  for (int64_t strip = 0; strip < divide_up(count, rows); ++strip) {
    const int64_t valid = std::min(rows, count - strip * rows);
    for (int64_t r = 0; r < valid; ++r) {
      const Origin origin = problem.origins[first + strip * rows + r];
      const float* pixels[kPositions];
      for (int64_t i = 0; i < kPositions; ++i) {
        pixels[i] = pixel(problem, map, channels, origin.y + (i / 6 - 1) * problem.dilation,
                          origin.x + (i % 6 - 1) * problem.dilation);
      }
      transform(pixels, channels, tiles + r * tile_size, plan.padded_channels);
    }
    for (int64_t i = 0; i < kPositions; ++i) {
      const float* lines[kMostLanes];
      for (int64_t r = 0; r < rows; ++r) {
        lines[r] = r < valid ? tiles + r * tile_size + i * plan.padded_channels : nullptr;
      }
      tile_loops().pack_strip(lines, channels, 1.0f,
                              inputs + (i * plan.strips + strip) * channels * rows);
    }
  }
}

// M of some tiles for the output channels from `first_channel` on, [positions][strips][rows of
// tiles, lanes of channels]. `panel` is memory.
void multiply(const Convolution& problem, const Plan& plan, int64_t strips, int64_t first_channel,
              const TileLoops& loops, const float* inputs, float* panel, float* sums) {
  const int64_t channels = problem.channels, depth = loops.depth;
  for (int64_t i = 0; i < kPositions; ++i) {
    const float* lines[kMostLanes];
    for (int64_t k = 0; k < loops.lanes; ++k) {
      const int64_t channel = first_channel + k;
      lines[k] = channel < problem.out_channels
                     ? problem.weight + (i * problem.out_channels + channel) * channels
                     : nullptr;
    }
    loops.pack_rows(lines, 0, channels, 1.0f, panel);
    for (int64_t c = 0; c < channels; c += depth) {
      const auto product = c == 0 ? loops.product : loops.product_add;
      for (int64_t strip = 0; strip < strips; ++strip) {
        product(std::min(depth, channels - c),
                inputs + ((i * plan.strips + strip) * channels + c) * loops.rows,
                panel + c * loops.lanes,
                sums + (i * plan.strips + strip) * loops.rows * loops.lanes);
      }
    }
  }
}

// The pixels of some tiles for the output channels from `first_channel` on.
void restore_tiles(const Convolution& problem, const Plan& plan, int64_t b, int64_t first,
                   int64_t count, int64_t first_channel, const TileLoops& loops,
                   const float* sums) {
  const auto restore = TDNET_DISPATCH(restore_output);
  const int64_t map_size = problem.height * problem.width * problem.out_channels;
  const int64_t channels = std::min<int64_t>(loops.lanes, problem.out_channels - first_channel);
  float* const out = problem.out + b * map_size + first_channel;
  const float* const residual =
      problem.residual ? problem.residual + b * map_size + first_channel : nullptr;
  const float* const bias = problem.bias ? problem.bias + first_channel : nullptr;
  for (int64_t t = 0; t < count; ++t) {
    const Origin origin = problem.origins[first + t];
    float* pixels[kSide * kSide];
    const float* terms[kSide * kSide];
    for (int64_t i = 0; i < kSide * kSide; ++i) {
      const int64_t y = origin.y + i / kSide * problem.dilation;
      const int64_t x = origin.x + i % kSide * problem.dilation;
      pixels[i] = pixel(problem, out, problem.out_channels, y, x);
      terms[i] = residual ? pixel(problem, residual, problem.out_channels, y, x) : nullptr;
    }
    restore(sums + t * loops.lanes, plan.strips * loops.rows * loops.lanes, bias,
            residual ? terms : nullptr, problem.relu, channels, pixels);
  }
}

void convolve(const Convolution& problem, int64_t batch) {
  const Plan plan(problem, batch);
  const int64_t tiles = problem.origins.size(), of_group = plan.strips * tile_loops().rows;
  const Workspace workspace{plan.workspace(), "transformed tiles"};
  for_each_tile(batch * plan.groups, workspace, [&](const auto& take, float* inputs) {
    float* const transformed = inputs + plan.inputs_size;
    float* const panel = transformed + plan.tiles_size;
    float* const sums = panel + plan.panel_size;
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t b = t / plan.groups, first = t % plan.groups * of_group;
      const int64_t count = std::min(of_group, tiles - first);
      transform_tiles(problem, plan, b, first, count, transformed, inputs);
      for (int64_t k = 0; k < problem.out_channels; k += tile_loops().lanes) {
        const TileLoops& loops = tile_loops(problem.out_channels - k);
        const int64_t strips = divide_up<int64_t>(count, loops.rows);
        multiply(problem, plan, strips, k, loops, inputs, panel, sums);
        restore_tiles(problem, plan, b, first, count, k, loops, sums);
      }
    }
  });
}

// Of any dtype but float64, arguments checked.
Tensor convolve_float(const MapShape& shape, const Tensor& x, const Tensor& weight,
                      const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                      int64_t dilation, bool relu) {
  const auto [batch, out_channels, height, width] = shape;
  const Tensor pixels = pixels_first(to_float(x));
  const Tensor matrices = torch::stable::contiguous(to_float(weight));
  std::optional<Tensor> offsets = to_float(bias), terms = to_float(residual);
  if (offsets) offsets = torch::stable::contiguous(*offsets);
  if (terms) terms = pixels_first(*terms);
  const std::array<int64_t, 4> pixels_shape{batch, height, width, out_channels};
  const Tensor out = with_huge_pages(new_result(x, pixels_shape, ScalarType::Float));
  if (batch > 0) {
    convolve({.height = height,
              .width = width,
              .channels = x.size(1),
              .out_channels = out_channels,
              .dilation = dilation,
              .x = pixels.const_data_ptr<float>(),
              .weight = matrices.const_data_ptr<float>(),
              .bias = offsets ? offsets->const_data_ptr<float>() : nullptr,
              .residual = terms ? terms->const_data_ptr<float>() : nullptr,
              .out = out.mutable_data_ptr<float>(),
              .relu = relu,
              .origins = tile_origins(height, width, dilation)},
             batch);
  }
  const Tensor map = channels_first(out);
  return x.stride(1) == 1 ? map : torch::stable::contiguous(map);
}

Tensor winograd_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const std::optional<Tensor>& residual, int64_t dilation,
                       const std::string& activation, bool allow_tf32) {
  const MapShape shape = check_winograd_conv2d(x, weight, bias, residual, dilation, activation);
  if (is_double(x)) {
    return call_operator("tdnet_reference::winograd_conv2d", x, weight, bias, residual, dilation,
                         activation, allow_tf32)[0];
  }
  const Tensor out =
      convolve_float(shape, x, weight, bias, residual, dilation, activation == "relu");
  return from_float(out, x.scalar_type());
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&tdnet::cpu::winograd_conv2d));
}
