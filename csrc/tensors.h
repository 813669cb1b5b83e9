// Tensors by the stable ABI: results in the layout of an operator, calls of other operators.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <exception>
#include <iomanip>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "text.h"
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

// `allocate()`, which makes `what`, of this size. Where memory does not suffice, the error says
// how much was wanted and for what; torch's own goes through the stable ABI with its internals.
template <typename Size, typename Allocate>
Tensor result_of(const Size& size, ScalarType dtype, const Allocate& allocate,
                 const char* what = "the result") {
  try {
    return allocate();
  } catch (const std::exception& error) {
    // Of a kernel before, which only shows here.
    if (std::string(error.what()).find("CUDA error") != std::string::npos) throw;
    const int64_t element = dtype == ScalarType::Double || dtype == ScalarType::Long ? 8
                            : dtype == ScalarType::Float                             ? 4
                            : dtype == ScalarType::Byte                              ? 1
                                                                                     : 2;
    double bytes = element;
    std::ostringstream text;
    for (const int64_t extent : size) {
      text << (text.tellp() == 0 ? "[" : ", ") << extent;
      bytes *= extent;
    }
    text << "] of " << dtype_name(dtype) << ", " << std::fixed << std::setprecision(0) << bytes
         << " bytes";
    throw std::runtime_error(std::string("out of memory: cannot allocate ") + what + " " +
                             text.str());
  }
}

template <typename Size>
Tensor new_result(const Tensor& like, const Size& size, ScalarType dtype) {
  return result_of(size, dtype, [&] { return torch::stable::new_empty(like, size, dtype); });
}

// channels_last exactly where the channels of `like` are adjacent: the layout rule of every
// operator.
inline Tensor empty_map(const Tensor& like, ScalarType dtype, const std::array<int64_t, 4>& size) {
  using torch::headeronly::MemoryFormat;
  return result_of(size, dtype, [&] {
    return torch::stable::empty(
        size, dtype, std::nullopt, like.device(), std::nullopt,
        like.stride(1) == 1 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  });
}

}  // namespace tdnet
