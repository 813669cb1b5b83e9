// Where numbers lie in memory, in 64 bits: no product of two sizes is formed in fewer. No device
// code, so that host tests call these with sizes that no machine holds.

#pragma once

#include "primitives/types.h"

namespace tdnet::cuda {

// Neither side overflows, however near a is to 2^63.
__host__ __device__ constexpr int64_t blocks_of(int64_t count, int64_t block) {
  return count / block + (count % block != 0);
}

// Of a feature map [B, C, H, W], in elements.
struct MapStrides {
  int64_t batch, channel, row, column;

  __host__ __device__ constexpr int64_t offset(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return b * batch + c * channel + y * row + x * column;
  }
};

// Of a contiguous array [any, rows, columns].
__host__ __device__ constexpr int64_t matrix_offset(int64_t b, int64_t row, int64_t column,
                                                    int64_t rows, int64_t columns) {
  return (b * rows + row) * columns + column;
}

struct Indices {
  int64_t first, second, third;
};

// The inverse of matrix_offset. (nvcc divides in 32 bits where both numbers fit at run time.)
__host__ __device__ constexpr Indices matrix_indices(int64_t offset, int64_t rows,
                                                     int64_t columns) {
  const int64_t outer = offset / columns;
  return {outer / rows, outer % rows, offset % columns};
}

}  // namespace tdnet::cuda
