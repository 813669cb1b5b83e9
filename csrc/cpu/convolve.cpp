#include "convolve.h"

#include <cstring>

#include "dtypes.h"
#include "tile.h"

namespace tdnet::cpu {
namespace {

// One kernel position of one block: a slice of the depth of the implicit matrix product.
struct Tap {
  const Tensor* x;
  const float* weights;  // strips [channels, rows], `strip_stride` apart
  int64_t strip_stride;
  int64_t dy, dx;
};

// weight [C_out, C, k, k] -> for every tap, for every strip of output channels, [C, rows].
void pack_weight(const Tensor& weight, const TileLoops& loops, float* out) {
  const int64_t out_channels = weight.size(0), channels = weight.size(1), kernel = weight.size(2);
  const int64_t strips = divide_up(out_channels, loops.rows);
  for_each_tile(kernel * kernel, [&](const auto& take) {
    for (int64_t tap = take(); tap >= 0; tap = take()) {
      const Tokens source{weight.const_data_ptr<float>() + (tap / kernel) * weight.stride(2) +
                              (tap % kernel) * weight.stride(3),
                          0, weight.stride(0), weight.stride(1)};
      for (int64_t strip = 0; strip < strips; ++strip) {
        pack_channels(source, 0, 0, channels, strip * loops.rows, out_channels, loops.rows,
                      out + (tap * strips + strip) * channels * loops.rows);
      }
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

}  // namespace

Tensor convolve_blocks(const Tensor& like, const std::array<int64_t, 4>& shape,
                       const std::vector<Tensor>& blocks, const std::vector<Tensor>& weights,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                       const ConvolutionOptions& options) {
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
    const int64_t strip_stride = blocks[i].size(1) * loops.rows;
    for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
      taps.push_back({&blocks[i], next, strip_stride,
                      tap / kernel * options.dilation - options.padding,
                      tap % kernel * options.dilation - options.padding});
      next += strips * strip_stride;
    }
  }

  const Tensor out = empty_float_map(like, shape);
  const Output output(out, bias, residual, options.relu);
  const int64_t tiles = divide_up(pixels, loops.lanes);
  const int64_t panel_size = int64_t{loops.depth} * loops.lanes;
  const Workspace workspace{panel_size + strips * loops.rows * loops.lanes, "sums of channels"};
  for_each_tile(batch * tiles, workspace, [&](const auto& take, float* panel) {
    float* sums = panel + panel_size;
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t b = t / tiles, first = t % tiles * loops.lanes;
      bool started = false;
      for (const Tap& tap : taps) {
        const PixelRun run = locate(*tap.x, b, first, pixels, width, tap.dy, tap.dx, loops.lanes);
        const int64_t channels = tap.x->size(1);
        for (int64_t c = 0; c < channels; c += loops.depth) {
          const int64_t count = std::min<int64_t>(loops.depth, channels - c);
          pack_pixels(run, tap.x->stride(1), c, count, loops, panel);
          const auto product = started ? loops.product_add : loops.product;
          started = true;
          for (int64_t strip = 0; strip < strips; ++strip) {
            product(count, tap.weights + strip * tap.strip_stride + c * loops.rows, panel,
                    sums + strip * loops.rows * loops.lanes);
          }
        }
      }
      for (int64_t strip = 0; strip < strips; ++strip) {
        loops.finish_block(sums + strip * loops.rows * loops.lanes,
                           output.epilogue(b, strip * loops.rows, first));
      }
    }
  });
  return out;
}

}  // namespace tdnet::cpu
