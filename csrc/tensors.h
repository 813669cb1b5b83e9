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

// Whether Python is there, which registers the definitions, torch.ops.tdnet_reference.
bool definitions_are_registered();

// Calls an operator's definition, which computes float64, by its name ("tdnet_reference::...") with
// every argument of its schema; returns its `kResults` tensors. In a build for another name space
// the definitions are there.
template <size_t kResults = 1, typename... Arguments>
std::array<Tensor, kResults> call_operator(const char* name, const Arguments&... arguments) {
  const std::string operator_name = std::string(name).substr(std::string(name).find("::") + 2);
  if (!definitions_are_registered()) {
    throw std::runtime_error(
        operator_name +
        ": expected float32, float16 or bfloat16, got float64, which the definition in Python "
        "computes: convert the tensors, or call it where tdnet_ops is imported");
  }
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  static_assert(kResults <= sizeof...(Arguments));
  const std::string definition = C10_STRINGIZE(TDNET_NAME_SPACE) "_reference::" + operator_name;
  TDNET_CHECK_TORCH_CALL(
      torch_call_dispatcher(definition.c_str(), "", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, kResults> results;
  for (size_t i = 0; i < kResults; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

// What torch said of a failed call; nothing where its headers do not pass it on (before 2.13).
inline std::string torch_text(const std::exception& error) {
  const std::string text = error.what();
  const size_t end = text.find(" (originally from ");
  return end == std::string::npos ? "" : text.substr(0, end);
}

// `allocate()`, which makes `what`, of this size. Where it fails, the error says how much was
// wanted and for what, and that memory does not suffice where torch says so; on a GPU it may be the
// error of a kernel before.
template <typename Size, typename Allocate>
Tensor result_of(const Size& size, ScalarType dtype, const Allocate& allocate,
                 const char* what = "the result") {
  try {
    return allocate();
  } catch (const std::exception& error) {
    const std::string said = torch_text(error);
    const auto says = [&](const char* words) { return said.find(words) != std::string::npos; };
    const bool out_of_memory = says("out of memory") || says("allocate memory");
    const int64_t element = dtype == ScalarType::Double || dtype == ScalarType::Long ? 8
                            : dtype == ScalarType::Float                             ? 4
                            : dtype == ScalarType::Byte                              ? 1
                                                                                     : 2;
    double bytes = element;
    std::ostringstream text;
    text << (out_of_memory ? "out of memory: " : "") << "cannot allocate " << what << " [";
    const char* separator = "";
    for (const int64_t extent : size) {
      text << separator << extent;
      separator = ", ";
      bytes *= extent;
    }
    text << "] of " << dtype_name(dtype) << ", " << std::fixed << std::setprecision(0) << bytes
         << " bytes";
    if (!out_of_memory && !said.empty()) text << ": " << said;
    throw std::runtime_error(text.str());
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
