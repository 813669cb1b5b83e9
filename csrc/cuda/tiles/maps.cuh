// How tiles of maps come into shared memory.

#pragma once

#include "../primitives/copy.cuh"
#include "../primitives/numbers.cuh"
#include "../primitives/platform.cuh"
#include "map.h"
#include "vectors.cuh"

namespace tdnet::cuda {

template <class T>
__device__ __forceinline__ float number_at(const Map<const T>& map, int channel, int token) {
  return Number<T>::to_float(map.data[map.offset(channel, token)]);
}

// Copies tokens first_token .. + kRows - 1, channels first_channel .. + kColumns - 1 of one map to
// tile[row][column], rows `stride` elements apart (whole 16 bytes), by kThreads threads; zeros
// outside the map. With Access::kVectors the copies are asynchronous: commit and wait.
template <int kRows, int kColumns, int kThreads, class T>
__device__ __forceinline__ void load_tile(T* tile, int stride, const Map<const T>& map,
                                          int first_token, int first_channel) {
  constexpr int kChunks = kColumns / kVector<T>;
  static_assert(kRows * kChunks % kThreads == 0);
  const Shared shared = shared_at(tile);
  if (map.access == Access::kVectors) {
#pragma unroll 2
    for (int first = 0; first < kRows * kChunks; first += kThreads) {
      const int i = first + threadIdx.x;
      const int row = i / kChunks, column = i % kChunks * kVector<T>;
      const int token = first_token + row, channel = first_channel + column;
      const bool inside = token < map.tokens && channel < map.channels;
      const T* from = map.data + (inside ? map.offset(channel, token) : 0);
      copy_async_16(shared, (row * stride + column) * sizeof(T), from, inside);
    }
    return;
  }
  // Neighbouring threads take neighbouring channels where these are adjacent, else tokens.
  const bool along_channels = map.channel == 1;
#pragma unroll 1
  for (int first = 0; first < kRows * kChunks; first += kThreads) {
    const int i = first + threadIdx.x;
    const int row = along_channels ? i / kChunks : i % kRows;
    const int column = (along_channels ? i % kChunks : i / kRows) * kVector<T>;
    const int token = first_token + row, channel = first_channel + column;
    const bool inside = token < map.tokens && channel < map.channels;
    const T* from = map.data + (inside ? map.offset(channel, token) : 0);
    gather_vector(shared, (row * stride + column) * sizeof(T), from, map.channel,
                  inside ? map.channels - channel : 0);
  }
}

}  // namespace tdnet::cuda
