// How errors show values: as torch and Python print them.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cctype>
#include <cstdint>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

namespace tdnet {

// "torch.float32".
inline std::string dtype_name(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::ComplexHalf:
      return "torch.complex32";
    case ScalarType::ComplexFloat:
      return "torch.complex64";
    case ScalarType::ComplexDouble:
      return "torch.complex128";
    default:  // the same in C++ and Python but for capitals: BFloat16, Float8_e5m2, ...
      std::string name = std::string("torch.") + torch::headeronly::toString(dtype);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      return name;
  }
}

// "cuda:0", or "cpu" where there is no index.
inline std::string device_name(const torch::stable::Device& device) {
  constexpr const char* kTypes[] = {"cpu", "cuda", "mkldnn",       "opengl", "opencl", "ideep",
                                    "hip", "fpga", "maia",         "xla",    "vulkan", "metal",
                                    "xpu", "mps",  "meta",         "hpu",    "ve",     "lazy",
                                    "ipu", "mtia", "privateuseone"};
  const auto type = static_cast<size_t>(device.type());
  std::string name = type < std::size(kTypes) ? kTypes[type] : "unknown";
  if (device.index() < 0) return name;
  return name.append(":").append(std::to_string(device.index()));
}

// The shape of a tensor, [1, 64, 97, 193]; put into words only where it is printed.
struct ShapeText {
  const torch::stable::Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  out << "[";
  for (int64_t d = 0; d < shape.tensor.dim(); ++d) out << (d ? ", " : "") << shape.tensor.size(d);
  return out << "]";
}

inline ShapeText shape_text(const torch::stable::Tensor& x) { return {x}; }

// Python's tuple of numbers: (97, 193), (97,), ().
struct TupleText {
  const std::vector<int64_t>& numbers;
};

inline std::ostream& operator<<(std::ostream& out, const TupleText& tuple) {
  out << "(";
  for (size_t i = 0; i < tuple.numbers.size(); ++i) out << (i ? ", " : "") << tuple.numbers[i];
  return out << (tuple.numbers.size() == 1 ? ",)" : ")");
}

}  // namespace tdnet
