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

namespace tdnet::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor to_float(const Tensor& x) { return torch::stable::to(x, ScalarType::Float); }

inline std::optional<Tensor> to_float(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(to_float(*x)) : std::nullopt;
}

inline std::vector<Tensor> to_float(const std::vector<Tensor>& list) {
  std::vector<Tensor> out;
  for (const Tensor& x : list) out.push_back(to_float(x));
  return out;
}

inline Tensor from_float(const Tensor& x, ScalarType dtype) { return torch::stable::to(x, dtype); }

inline bool is_double(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

// Calls an operator by name with every argument of its schema; returns its `kResults` tensors.
template <size_t kResults = 1, typename... Arguments>
std::array<Tensor, kResults> call_operator(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  static_assert(kResults <= sizeof...(Arguments));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, kResults> results;
  for (size_t i = 0; i < kResults; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

// A large fresh result costs a page fault every 4 KiB, a tenth of attention_propagate's time; huge
// pages cost 512 times fewer. Only advice: without them nothing changes.
inline const Tensor& with_huge_pages(const Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t begin = (first + kPage - 1) / kPage * kPage;
  const uintptr_t end = (first + x.numel() * sizeof(float)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return x;
}

// channels_last exactly where the channels of `like` are adjacent: the layout rule of every
// operator.
inline Tensor empty_map_like(const Tensor& like, int64_t batch, int64_t channels, int64_t height,
                             int64_t width) {
  using torch::headeronly::MemoryFormat;
  const std::array<int64_t, 4> size{batch, channels, height, width};
  return with_huge_pages(torch::stable::empty(
      size, ScalarType::Float, std::nullopt, like.device(), std::nullopt,
      like.stride(1) == 1 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous));
}

}  // namespace tdnet::cpu
