// Feature maps [B, C, H, W] of any strides, seen as tokens [B, H * W, C]. For launchers and
// kernels.

#pragma once

#include "../primitives/types.h"

namespace tdnet::cuda {

template <class T>
constexpr int kVector = 16 / int{sizeof(T)};  // numbers in 16 bytes

// Which neighbours in memory a tile load can take together.
enum class Access : int {
  kVectors,  // 16 bytes of channels: adjacent, whole, aligned (channels_last)
  kTokens,   // pixels are adjacent (NCHW)
  kAny,
};

// Strides in elements. `data` may be null: no map.
template <class T>
struct Map {
  T* data;
  int64_t batch, channel, row, column;
  int width;  // of the map, in pixels
  int tokens, channels;
  Access access;

  __host__ __device__ int64_t token_offset(int token) const {
    if (token < width) return token * column;  // no division; all of a matrix is one row
    const int y = token / width, x = token - y * width;
    return y * row + x * column;
  }
  // Where the rows of pixels follow each other as one.
  __host__ __device__ int64_t long_row_offset(int64_t c, int64_t token) const {
    return c * channel + token * column;
  }
  __host__ __device__ int64_t offset(int64_t c, int token) const {
    return c * channel + token_offset(token);
  }
  // The b-th map.
  __host__ __device__ Map at(int64_t b) const {
    Map one = *this;
    one.data += b * batch;
    return one;
  }
};

// The heads of maps [B, heads * C, H, W], B * heads maps of their own channels.
template <class T>
struct Heads {
  Map<T> map;  // of a head, the first
  int count = 1;
  int64_t stride = 0;

  // Divides: once a tile.
  __host__ __device__ Map<T> at(unsigned b) const {
    Map<T> one = map.at(b / count);
    one.data += b % count * stride;
    return one;
  }
};

// Where a token begins in a matrix [B, tokens, stride].
__host__ __device__ inline int64_t token_offset(int64_t b, int64_t tokens, int64_t token,
                                                int64_t stride) {
  return (b * tokens + token) * stride;
}

}  // namespace tdnet::cuda
