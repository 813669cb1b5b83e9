// The CPU kernels compute in float32. Half precision is converted on the way in and out; float64
// goes to the operator's reference.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "../arithmetic.h"
#include "../tensors.h"

namespace tdnet::cpu {

// `x` itself where the dtype is right, without a call of the dispatcher.
inline Tensor converted(const Tensor& x, ScalarType dtype, const char* what) {
  if (x.scalar_type() == dtype) return x;
  return result_of(x.sizes(), dtype, [&] { return torch::stable::to(x, dtype); }, what);
}

inline Tensor to_float(const Tensor& x) {
  return converted(x, ScalarType::Float, "a float32 copy of an argument,");
}

inline std::optional<Tensor> to_float(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(to_float(*x)) : std::nullopt;
}

inline std::vector<Tensor> to_float(const std::vector<Tensor>& list) {
  std::vector<Tensor> out;
  for (const Tensor& x : list) out.push_back(to_float(x));
  return out;
}

inline Tensor from_float(const Tensor& x, ScalarType dtype) {
  return converted(x, dtype, "the result");
}

// A large fresh result costs a page fault every 4 KiB, a tenth of attention_propagate's time; huge
// pages cost 512 times fewer. Only advice: without them nothing changes.
inline const Tensor& with_huge_pages(const Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t begin = round_up(first, kPage);
  const uintptr_t end = (first + x.numel() * sizeof(float)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return x;
}

inline Tensor empty_float_map(const Tensor& like, const std::array<int64_t, 4>& shape) {
  return with_huge_pages(empty_map(like, ScalarType::Float, shape));
}

// [B, C, H, W] -> [B, H, W, C], without a copy of what is in channels_last.
inline Tensor pixels_first(const Tensor& map) {
  return torch::stable::contiguous(
      torch::stable::transpose(torch::stable::transpose(map, 1, 2), 2, 3));
}

// [B, H, W, C] -> [B, C, H, W], the same numbers in channels_last.
inline Tensor channels_first(const Tensor& pixels) {
  return torch::stable::transpose(torch::stable::transpose(pixels, 2, 3), 1, 2);
}

}  // namespace tdnet::cpu
