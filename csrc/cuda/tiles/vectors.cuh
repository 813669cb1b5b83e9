// Runs of neighbouring numbers in memory, taken 16 bytes at a time. Addresses are 16-byte aligned.

#pragma once

#include <cstring>
#include <type_traits>

#include "../primitives/matrix.cuh"
#include "../primitives/numbers.cuh"
#include "../primitives/platform.cuh"
#include "map.h"

namespace tdnet::cuda {

template <class T>
__device__ __forceinline__ void load_vector(const T* from, float (&numbers)[kVector<T>]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(numbers, &bits, sizeof(bits));
  } else {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = Number<T>::unpack(words[i]);
      numbers[2 * i] = two.x;
      numbers[2 * i + 1] = two.y;
    }
  }
}

template <class T>
__device__ __forceinline__ void store_vector(T* to, const float (&numbers)[kVector<T>]) {
  uint4 bits;
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(&bits, numbers, sizeof(bits));
  } else {
    bits = make_uint4(
        Number<T>::pack(numbers[0], numbers[1]), Number<T>::pack(numbers[2], numbers[3]),
        Number<T>::pack(numbers[4], numbers[5]), Number<T>::pack(numbers[6], numbers[7]));
  }
  *reinterpret_cast<uint4*>(to) = bits;
}

// `count` numbers that lie `stride` apart to 16 bytes of shared memory; zeros after them.
template <class T>
__device__ __forceinline__ void gather_vector(Shared shared, uint32_t offset, const T* from,
                                              int64_t stride, int count) {
  T numbers[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    numbers[i] = i < count ? from[i * stride] : Number<T>::from_float(0.f);
  }
  uint32_t words[4];
  std::memcpy(words, numbers, sizeof(words));
  store_shared_16(shared, offset, words);
}

// Two neighbours, aligned to both together.
template <class T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
  if constexpr (std::is_same_v<T, float>) {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  } else {
    *reinterpret_cast<uint32_t*>(to) = Number<T>::pack(first, second);
  }
}

}  // namespace tdnet::cuda
