// Tensors by the stable ABI: results in the layout of an operator, calls of other operators.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>

#include "torch_call.h"

namespace tdnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_double(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

// Calls an operator by name with every argument of its schema; returns its `kResults` tensors.
template <size_t kResults = 1, typename... Arguments>
std::array<Tensor, kResults> call_operator(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  static_assert(kResults <= sizeof...(Arguments));
  TDNET_CHECK_TORCH_CALL(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, kResults> results;
  for (size_t i = 0; i < kResults; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

// channels_last exactly where the channels of `like` are adjacent: the layout rule of every
// operator.
inline Tensor empty_map(const Tensor& like, ScalarType dtype, const std::array<int64_t, 4>& size) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      size, dtype, std::nullopt, like.device(), std::nullopt,
      like.stride(1) == 1 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace tdnet
