// What every launcher needs on top of ../checks.h: tensors as maps for the kernels, and results in
// the caller's memory format.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "../../checks.h"
#include "../../tensors.h"
#include "../tiles/map.h"

namespace tdnet::cuda {

// f(std::type_identity<T>()) for the type that kernels have of float16, bfloat16 or float32.
template <class F>
void with_element_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Half:
      return f(std::type_identity<__half>());
    case ScalarType::BFloat16:
      return f(std::type_identity<__nv_bfloat16>());
    default:
      return f(std::type_identity<float>());
  }
}

// In an int, and so does the end of a kernel's last tile, which reaches beyond the count.
inline void check_fits_int(const std::string& name, int64_t count, const std::string& of) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() - 1024;
  check(count <= kMost, name, ": expected at most ", kMost, " ", of, ", got ", count);
}

// Batch, channels, and pixels of a map.
inline void check_fits_int(const std::string& name, const Tensor& x) {
  check_fits_int(name, x.size(0), "maps");
  check_fits_int(name, x.size(1), "channels");
  check_fits_int(name, x.size(2) * x.size(3), "pixels");
}

// 16 bytes of channels can be taken at once. A dimension of one element has a stride of no meaning:
// give 0 for it.
template <class T>
bool whole_vectors(const T* data, int64_t channels, std::initializer_list<int64_t> strides) {
  int64_t all = channels;
  for (const int64_t stride : strides) all |= stride;
  return all % kVector<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// A map [B, C, H, W] of any strides.
template <class T>
Map<const T> map_of(const std::string& name, const Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3);
  check_fits_int(name, x);
  const auto stride = [&](int64_t dim) { return x.size(dim) == 1 ? 0 : x.stride(dim); };
  Map<const T> map{.data = static_cast<const T*>(x.const_data_ptr()),
                   .batch = stride(0),
                   .channel = x.stride(1),
                   .row = stride(2),
                   .column = stride(3),
                   .width = static_cast<int>(width),
                   .tokens = static_cast<int>(height * width),
                   .channels = static_cast<int>(x.size(1)),
                   .access = Access::kAny};
  if (map.channel == 1 && whole_vectors(map.data, map.channels, {map.batch, map.row, map.column})) {
    map.access = Access::kVectors;
  } else if (map.column == 1) {
    map.access = Access::kTokens;
  }
  return map;
}

// A matrix [B, rows, columns] of any strides as a map: tokens are its rows, channels its columns.
template <class T>
Map<const T> matrix_map(const std::string& name, const Tensor& x) {
  for (int64_t dim = 0; dim < 3; ++dim) check_fits_int(name, x.size(dim), "numbers in a dimension");
  Map<const T> map{.data = static_cast<const T*>(x.const_data_ptr()),
                   .batch = x.size(0) == 1 ? 0 : x.stride(0),
                   .channel = x.stride(2),
                   .row = 0,
                   .column = x.size(1) == 1 ? 0 : x.stride(1),
                   .width = static_cast<int>(x.size(1)),
                   .tokens = static_cast<int>(x.size(1)),
                   .channels = static_cast<int>(x.size(2)),
                   .access = Access::kAny};
  if (map.channel == 1 && whole_vectors(map.data, map.channels, {map.batch, map.column})) {
    map.access = Access::kVectors;
  } else if (map.column == 1) {
    map.access = Access::kTokens;
  }
  return map;
}

// A bias [C] as a map of one pixel, the same in all batches.
template <class T>
Map<const T> bias_map(const Tensor& bias) {
  return {.data = static_cast<const T*>(bias.const_data_ptr()),
          .batch = 0,
          .channel = bias.stride(0),
          .row = 0,
          .column = 0,
          .width = 1,
          .tokens = 1,
          .channels = static_cast<int>(bias.size(0)),
          .access = Access::kAny};
}

// Result maps are whole: NCHW contiguous or channels_last.
template <class T>
Map<T> output_map(Tensor& x) {
  const int64_t height = x.size(2), width = x.size(3);
  check_fits_int("result", x);
  return {.data = static_cast<T*>(x.mutable_data_ptr()),
          .batch = x.stride(0),
          .channel = x.stride(1),
          .row = x.stride(2),
          .column = x.stride(3),
          .width = static_cast<int>(width),
          .tokens = static_cast<int>(height * width),
          .channels = static_cast<int>(x.size(1)),
          .access = x.stride(1) == 1 ? Access::kVectors : Access::kTokens};
}

// The heads of a map of tokens: rows that follow each other in memory are one row, so that kernels
// need no division.
template <class T>
Heads<T> heads_of(Map<T> map, int64_t count) {
  map.channels /= static_cast<int>(count);
  if (map.access == Access::kVectors && map.channels % kVector<T> != 0) map.access = Access::kAny;
  if (map.width == 1) map.column = map.row;
  if (map.row == map.width * map.column) map.width = map.tokens;
  return {.map = map, .count = static_cast<int>(count), .stride = map.channels * map.channel};
}

}  // namespace tdnet::cuda
