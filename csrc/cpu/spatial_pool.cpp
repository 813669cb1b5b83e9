// spatial_pool, gamma_n of Eq. 3: the maximum, or the top-left pixel, of every n x n window; ceil
// mode.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "../checks.h"
#include "dtypes.h"
#include "pooling.h"
#include "tile.h"

namespace tdnet::cpu {
namespace {

// The maximum of a window, NaN if it holds one (as torch).
float window_maximum(const float* corner, int64_t rows, int64_t columns, int64_t row_stride,
                     int64_t column_stride) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const float value = corner[y * row_stride + x * column_stride];
      if (value > maximum || std::isnan(value)) maximum = value;
    }
  }
  return maximum;
}

}  // namespace

Tensor pool(const Tensor& layout, const Tensor& x, int64_t stride, const std::string& mode) {
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t out_height = divide_up(height, stride), out_width = divide_up(width, stride);
  Tensor out = empty_map_like(layout, x.size(0), channels, out_height, out_width);
  const float* data = x.const_data_ptr<float>();
  float* out_data = out.mutable_data_ptr<float>();
  const int64_t window = mode == "max" ? stride : 1;
  torch::stable::parallel_for(0, x.size(0) * out_height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / out_height, out_y = row % out_height, y = out_y * stride;
      const int64_t rows = std::min(window, height - y);
      for (int64_t out_x = 0; out_x < out_width; ++out_x) {
        const int64_t column = out_x * stride;
        const int64_t columns = std::min(window, width - column);
        const float* corner = data + b * x.stride(0) + y * x.stride(2) + column * x.stride(3);
        float* to = out_data + b * out.stride(0) + out_y * out.stride(2) + out_x * out.stride(3);
        for (int64_t c = 0; c < channels; ++c) {
          to[c * out.stride(1)] =
              window_maximum(corner + c * x.stride(1), rows, columns, x.stride(2), x.stride(3));
        }
      }
    }
  });
  return out;
}

namespace {

Tensor spatial_pool(const Tensor& x, int64_t stride, const std::string& mode) {
  check_feature_map("x", x);
  check_has_pixels("x", x);
  check_positive("stride", stride);
  check_mode(mode);
  if (is_double(x)) return call_operator("tdnet_reference::spatial_pool", x, stride, mode)[0];
  return from_float(pool(x, to_float(x), stride, mode), x.scalar_type());
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(tdnet, CPU, m) {
  m.impl("spatial_pool", TORCH_BOX(&tdnet::cpu::spatial_pool));
}
