// torch.ops.tdnet_bench.multiply_adds: float32 multiply-adds and nothing else, on every thread in
// the instruction set in use. Its rate is the peak that tdnet_ops.bench holds the operators
// against; it is no operator of the library, hence the name space.

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "../checks.h"
#include "tile.h"

namespace tdnet::cpu {
// Numbers that a thread takes at a time: a multiple of what every instruction set holds in
// registers.
constexpr int kPeakBlock = 384;
}  // namespace tdnet::cpu

#define TDNET_LOOPS "peak_loops.h"
#include "for_each_instruction_set.h"

namespace tdnet::cpu {
namespace {

// x [blocks * 384], float32, contiguous -> x after `steps` of x = x / 2 + 1 / 2:
// 2 * x.numel() * steps operations.
Tensor multiply_adds(const Tensor& x, int64_t steps) {
  check(x.scalar_type() == ScalarType::Float && x.dim() == 1 && x.is_contiguous() &&
            x.numel() % kPeakBlock == 0,
        "x: expected contiguous float32 [blocks * ", kPeakBlock, "], got ",
        dtype_name(x.scalar_type()), " ", shape_text(x));
  check(steps >= 0, "steps: expected at least 0, got ", steps);
  const Tensor out = torch::stable::new_empty(x, x.sizes());
  float* numbers = out.mutable_data_ptr<float>();
  const float* from = x.const_data_ptr<float>();
  const auto loop = TDNET_DISPATCH(multiply_adds);
  for_each_tile(x.numel() / kPeakBlock, [&](const auto& take) {
    for (int64_t block = take(); block >= 0; block = take()) {
      float* place = numbers + block * kPeakBlock;
      std::memcpy(place, from + block * kPeakBlock, sizeof(float) * kPeakBlock);
      loop(steps, place);
    }
  });
  return out;
}

}  // namespace
}  // namespace tdnet::cpu

#define TDNET_BENCH C10_CONCATENATE(TDNET_NAME_SPACE, _bench)

STABLE_TORCH_LIBRARY_FRAGMENT(TDNET_BENCH, m) {
  m.def("multiply_adds(Tensor x, int steps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(TDNET_BENCH, CPU, m) {
  m.impl("multiply_adds", TORCH_BOX(&tdnet::cpu::multiply_adds));
}
