#include "convolve.h"

#include <cstring>

#include "dtypes.h"
#include "tile.h"

namespace tdnet::cpu {
namespace {

// One kernel position of one block: a slice of the depth of the implicit matrix product.
struct Tap {
  const Tensor* x;
  const float* weights;  // strips [channels, rows]
  int64_t dy, dx;
};

// weight [C_out, C, k, k] -> for every tap, for every strip of output channels, [C, rows].
void pack_weight(const Tensor& weight, const TileLoops& loops, float* out) {
  const int64_t out_channels = weight.size(0), channels = weight.size(1), kernel = weight.size(2);
  const int64_t strips = divide_up(out_channels, loops.rows);
  for_each_tile(kernel * kernel * strips, [&](const auto& take) {
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t tap = t / strips;
      const Tokens source{weight.const_data_ptr<float>() + (tap / kernel) * weight.stride(2) +
                              (tap % kernel) * weight.stride(3),
                          0, weight.stride(1), weight.stride(0)};
      pack_tokens(source, 0, t % strips * loops.rows, out_channels, channels, loops.rows, 1.0f,
                  out + t * channels * loops.rows);
    }
  });
}

// The input pixels under one tap of `lanes` consecutive output pixels.
struct PixelRun {
  const float* pixels[kMostLanes];  // null outside the map
  bool adjacent;                    // pixels[i] == pixels[0] + i
};

PixelRun locate(const Tensor& x, int64_t b, int64_t first, int64_t end, int64_t out_width,
                int64_t dy, int64_t dx, int lanes) {
  PixelRun run;
  const float* data = x.const_data_ptr<float>() + b * x.stride(0);
  const int64_t height = x.size(2), width = x.size(3);
  const int64_t row_stride = x.stride(2), column_stride = x.stride(3);
  int64_t y = first / out_width + dy, column = first % out_width;
  run.adjacent = true;
  for (int i = 0; i < lanes; ++i) {
    const int64_t x_position = column + dx;
    const bool inside =
        first + i < end && y >= 0 && y < height && x_position >= 0 && x_position < width;
    run.pixels[i] = inside ? data + y * row_stride + x_position * column_stride : nullptr;
    run.adjacent = run.adjacent && inside && run.pixels[i] == run.pixels[0] + i;
    if (++column == out_width) {
      column = 0;
      ++y;
    }
  }
  return run;
}

// panel [channels, lanes] of the channels from `first_channel` on.
void pack_pixels(const PixelRun& run, int64_t channel_stride, int64_t first_channel,
                 int64_t channels, const TileLoops& loops, float* panel) {
  const int lanes = loops.lanes;
  if (channel_stride == 1) {
    loops.pack_rows(run.pixels, first_channel, channels, 1.0f, panel);
    return;
  }
  if (run.adjacent) {
    for (int64_t c = 0; c < channels; ++c) {
      std::memcpy(panel + c * lanes, run.pixels[0] + (first_channel + c) * channel_stride,
                  sizeof(float) * lanes);
    }
    return;
  }
  for (int i = 0; i < lanes; ++i) {
    const float* pixel = run.pixels[i];
    for (int64_t c = 0; c < channels; ++c) {
      panel[c * lanes + i] = pixel ? pixel[(first_channel + c) * channel_stride] : 0.0f;
    }
  }
}

// Panels of pixels that share one pass over the weights.
constexpr int64_t kTilePanels = 4;

// Adds what one tap gives a tile to its sums [panels][strips][rows, lanes], or begins them with it.
// `panels` are memory.
void add_tap(const Tap& tap, const Tile& tile, const Strips& strips, int64_t out_width,
             float* panels, bool adds, float* sums) {
  const int64_t rows = tile_loops().rows, lanes = tile_loops().lanes, depth = tile_loops().depth;
  const int64_t channels = tap.x->size(1);
  PixelRun runs[kTilePanels];
  for (int64_t p = 0; p < tile.panels; ++p) {
    runs[p] = locate(*tap.x, tile.b, tile.token(p), tile.first + tile.count, out_width, tap.dy,
                     tap.dx, tile.loops(p).lanes);
  }
  for (int64_t c = 0; c < channels; c += depth) {
    const int64_t count = std::min(depth, channels - c);
    for (int64_t p = 0; p < tile.panels; ++p) {
      pack_pixels(runs[p], tap.x->stride(1), c, count, tile.loops(p), panels + p * depth * lanes);
    }
    const int64_t strip_count = strips.end - strips.first;
    for (int64_t strip = 0; strip < strip_count; ++strip) {
      const float* weights = tap.weights + ((strips.first + strip) * channels + c) * rows;
      for (int64_t p = 0; p < tile.panels; ++p) {
        const auto product = adds || c > 0 ? tile.loops(p).product_add : tile.loops(p).product;
        product(count, weights, panels + p * depth * lanes,
                sums + (p * strip_count + strip) * rows * lanes);
      }
    }
  }
}

// To pack the weights costs as much as some 40 pixels, and torch's product needs no packing of
// ours: below so many pixels it is the faster one of a 1x1 convolution in channels_last.
constexpr int64_t kFewPixels = 512;

bool is_small_product(const Tensor& like, const std::array<int64_t, 4>& shape,
                      const std::vector<Tensor>& blocks, const std::vector<Tensor>& weights,
                      const ConvolutionOptions& options) {
  const Tensor& x = blocks[0];
  const int64_t channels = x.size(1), width = x.size(3);
  return blocks.size() == 1 && weights[0].size(2) == 1 && options.padding == 0 && !options.relu &&
         shape[0] * shape[2] * shape[3] < kFewPixels && like.stride(1) == 1 && x.stride(1) == 1 &&
         x.stride(3) == channels && x.stride(2) == channels * width &&
         x.stride(0) == x.stride(2) * x.size(2);
}

// Runs work(pixel, sums) for every pixel of a product [B, H, W, C_out].
template <typename Work>
void for_each_pixel(const Tensor& product, const Work& work) {
  constexpr int64_t kPixels = 32;
  if (product.numel() == 0) return;
  float* const sums = product.mutable_data_ptr<float>();
  const int64_t channels = product.size(3), pixels = product.numel() / channels;
  for_each_tile(divide_up(pixels, kPixels), [&](const auto& take) {
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t end = std::min(pixels, (t + 1) * kPixels);
      for (int64_t pixel = t * kPixels; pixel < end; ++pixel) work(pixel, sums + pixel * channels);
    }
  });
}

void add_bias(const Tensor& product, const Tensor& bias) {
  const Tensor terms = torch::stable::contiguous(bias);
  const float* const from = terms.const_data_ptr<float>();
  const int64_t channels = product.size(3);
  for_each_pixel(product, [&](int64_t, float* sums) {
    for (int64_t c = 0; c < channels; ++c) sums[c] += from[c];
  });
}

void add_residual(const Tensor& product, Tensor residual) {
  const Tokens terms = tokens(residual);
  const int64_t pixels = product.size(1) * product.size(2), channels = product.size(3);
  for_each_pixel(product, [&](int64_t pixel, float* sums) {
    const float* const from = terms.at(pixel / pixels, 0, pixel % pixels);
    if (terms.channel == 1) {
      for (int64_t c = 0; c < channels; ++c) sums[c] += from[c];
    } else {
      for (int64_t c = 0; c < channels; ++c) sums[c] += from[c * terms.channel];
    }
  });
}

Tensor multiply_pixels(const std::array<int64_t, 4>& shape, const Tensor& x, const Tensor& weight,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& residual) {
  const Tensor pixels = torch::stable::transpose(torch::stable::flatten(x, 2, 3), 1, 2);
  const Tensor rows = torch::stable::flatten(pixels, 0, 1);
  const Tensor matrix = torch::stable::transpose(torch::stable::flatten(weight, 1, 3), 0, 1);
  const std::array<int64_t, 4> tokens_first{shape[0], shape[2], shape[3], shape[1]};
  const Tensor product = torch::stable::reshape(torch::stable::matmul(rows, matrix), tokens_first);
  if (bias) add_bias(product, *bias);
  if (residual) add_residual(product, *residual);
  return channels_first(product);
}

}  // namespace

Tensor convolve_blocks(const Tensor& like, const std::array<int64_t, 4>& shape,
                       const std::vector<Tensor>& blocks, const std::vector<Tensor>& weights,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                       const ConvolutionOptions& options) {
  if (is_small_product(like, shape, blocks, weights, options)) {
    return multiply_pixels(shape, blocks[0], weights[0], bias, residual);
  }
  const TileLoops& loops = tile_loops();
  const int64_t batch = shape[0], out_channels = shape[1], width = shape[3];
  const int64_t pixels = shape[2] * width, kernel = weights[0].size(2);
  const int64_t strips = divide_up(out_channels, loops.rows);

  int64_t depth = 0;
  for (const Tensor& x : blocks) depth += x.size(1) * kernel * kernel;
  const Buffer packed(depth * strips * loops.rows, "packed weights");
  std::vector<Tap> taps;
  float* next = packed.get();
  for (size_t i = 0; i < blocks.size(); ++i) {
    pack_weight(weights[i], loops, next);
    for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
      taps.push_back({&blocks[i], next, tap / kernel * options.dilation - options.padding,
                      tap % kernel * options.dilation - options.padding});
      next += strips * blocks[i].size(1) * loops.rows;
    }
  }

  const Tensor out = empty_float_map(like, shape);
  const Output output(out, bias, residual, options.relu);
  const int64_t tile_pixels = kTilePanels * loops.lanes;
  const int64_t tiles = divide_up(pixels, tile_pixels);
  // Of few pixels the threads share out the output channels.
  const int64_t work = 4 * torch::stable::get_num_threads();
  const int64_t groups = std::clamp<int64_t>(work / std::max<int64_t>(1, batch * tiles), 1, strips);
  const int64_t panels_size = kTilePanels * loops.depth * loops.lanes;
  const int64_t sums_size = divide_up(strips, groups) * kTilePanels * loops.rows * loops.lanes;
  const Workspace workspace{panels_size + sums_size, "sums of channels"};
  for_each_tile(batch * tiles * groups, workspace, [&](const auto& take, float* panels) {
    float* sums = panels + panels_size;
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t i = t / groups, group = t % groups;
      const Tile tile(i / tiles, i % tiles * tile_pixels, pixels, kTilePanels);
      const Strips some{group * strips / groups, (group + 1) * strips / groups};
      bool started = false;
      for (const Tap& tap : taps) {
        add_tap(tap, tile, some, width, panels, started, sums);
        started = true;
      }
      finish_tile(output, some, tile, sums);
    }
  });
  return out;
}

}  // namespace tdnet::cpu
