// spatial_pool, gamma_n of Eq. 3: the maximum, or the top-left pixel, of every n x n window; ceil
// mode.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>

#include "../checks.h"
#include "dtypes.h"
#include "pooling.h"
#include "tile.h"

#define TDNET_LOOPS "spatial_pool_loops.h"
#include "for_each_instruction_set.h"

namespace tdnet::cpu {
namespace {

// A map and its pooled form, in strides that the loops below share.
struct Pooling {
  const float* in;
  float* out;
  int64_t in_batch, in_channel, in_row, in_column;
  int64_t out_batch, out_channel, out_row, out_column;
  int64_t channels, height, width, out_height, out_width;
  int64_t stride, side;  // side of the window: the stride, or 1 to subsample
};

// One output row where the channels are adjacent in memory: all channels of a pixel at once.
void pool_pixels(const Pooling& p, int64_t b, int64_t out_y) {
  const auto raise_maximum = TDNET_DISPATCH(raise_maximum);
  const int64_t top = out_y * p.stride, bottom = std::min(top + p.side, p.height);
  for (int64_t out_x = 0; out_x < p.out_width; ++out_x) {
    const int64_t left = out_x * p.stride, right = std::min(left + p.side, p.width);
    const float* corner = p.in + b * p.in_batch + top * p.in_row + left * p.in_column;
    float* to = p.out + b * p.out_batch + out_y * p.out_row + out_x * p.out_column;
    std::copy_n(corner, p.channels, to);
    for (int64_t y = top; y < bottom; ++y) {
      for (int64_t x = left; x < right; ++x) {
        raise_maximum(corner + (y - top) * p.in_row + (x - left) * p.in_column, p.channels, to);
      }
    }
  }
}

// One output row of one channel: the window's rows first, into `maxima` [width], then its columns.
void pool_row(const Pooling& p, int64_t b, int64_t c, int64_t out_y, float* maxima) {
  const auto raise_maximum = TDNET_DISPATCH(raise_maximum);
  const int64_t top = out_y * p.stride, bottom = std::min(top + p.side, p.height);
  const float* row = p.in + b * p.in_batch + c * p.in_channel + top * p.in_row;
  float* to = p.out + b * p.out_batch + c * p.out_channel + out_y * p.out_row;
  if (p.side == 1) {
    for (int64_t out_x = 0; out_x < p.out_width; ++out_x) {
      to[out_x * p.out_column] = row[out_x * p.stride * p.in_column];
    }
    return;
  }
  std::fill_n(maxima, p.width, -std::numeric_limits<float>::infinity());
  for (int64_t y = top; y < bottom; ++y, row += p.in_row) {
    if (p.in_column == 1) {
      raise_maximum(row, p.width, maxima);
    } else {
      for (int64_t x = 0; x < p.width; ++x) raise_maximum(row + x * p.in_column, 1, maxima + x);
    }
  }
  for (int64_t out_x = 0; out_x < p.out_width; ++out_x) {
    const int64_t left = out_x * p.stride, right = std::min(left + p.side, p.width);
    float maximum = maxima[left];
    for (int64_t x = left + 1; x < right; ++x) {
      const bool raise = (maxima[x] > maximum) | (maxima[x] != maxima[x]);
      maximum = raise ? maxima[x] : maximum;
    }
    to[out_x * p.out_column] = maximum;
  }
}

}  // namespace

Tensor pool(const Tensor& like, const Tensor& x, int64_t stride, const std::string& mode) {
  const MapShape shape = pooled_shape(x, stride);
  const int64_t out_height = shape[2];
  const Tensor out = empty_float_map(like, shape);
  const Pooling p{.in = x.const_data_ptr<float>(),
                  .out = out.mutable_data_ptr<float>(),
                  .in_batch = x.stride(0),
                  .in_channel = x.stride(1),
                  .in_row = x.stride(2),
                  .in_column = x.stride(3),
                  .out_batch = out.stride(0),
                  .out_channel = out.stride(1),
                  .out_row = out.stride(2),
                  .out_column = out.stride(3),
                  .channels = shape[1],
                  .height = x.size(2),
                  .width = x.size(3),
                  .out_height = out_height,
                  .out_width = shape[3],
                  .stride = stride,
                  .side = mode == "max" ? stride : 1};
  const bool adjacent_channels = p.in_channel == 1 && p.out_channel == 1;
  const int64_t planes = adjacent_channels ? 1 : p.channels;
  const int64_t rows = shape[0] * planes * out_height;
  constexpr int64_t kRows = 8;  // that a thread takes at a time
  const Workspace workspace{adjacent_channels ? 0 : p.width, "maxima of a row"};
  for_each_tile(divide_up(rows, kRows), workspace, [&](const auto& take, float* maxima) {
    const auto pool_one = [&](int64_t row) {
      const int64_t b = row / out_height / planes, c = row / out_height % planes;
      const int64_t out_y = row % out_height;
      if (adjacent_channels) {
        pool_pixels(p, b, out_y);
      } else {
        pool_row(p, b, c, out_y, maxima);
      }
    };
    for (int64_t t = take(); t >= 0; t = take()) {
      const int64_t end = std::min(rows, (t + 1) * kRows);
      for (int64_t row = t * kRows; row < end; ++row) pool_one(row);
    }
  });
  return out;
}

namespace {

Tensor spatial_pool(const Tensor& x, int64_t stride, const std::string& mode) {
  check_spatial_pool(x, stride, mode);
  if (is_double(x)) return call_operator("tdnet_reference::spatial_pool", x, stride, mode)[0];
  return from_float(pool(x, to_float(x), stride, mode), x.scalar_type());
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("spatial_pool", TORCH_BOX(&tdnet::cpu::spatial_pool));
}
