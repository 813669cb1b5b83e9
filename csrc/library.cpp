// libtdnet_ops.so: torch.ops.tdnet, without Python. Kernels register themselves from cpu/ and
// cuda/. What a C++ program then lacks, Python registers in tdnet_ops/registration.py: the
// definitions, fake kernels, autograd, autocast, the fallback for other devices.

#include "library.h"

#include <torch/csrc/stable/library.h>

#include <atomic>

#include "cpu/instruction_sets.h"
#include "cuda/kernels/limits.h"
#include "schemas.h"
#include "tensors.h"

// A fragment: the macro for a whole library does not expand the name.
STABLE_TORCH_LIBRARY_FRAGMENT(TDNET_NAME_SPACE, m) { tdnet::define_operators(m); }

namespace tdnet {
namespace {

std::atomic<bool> definitions_expected{false};

}  // namespace

BuildInfo build_info() {
  return {.name_space = C10_STRINGIZE(TDNET_NAME_SPACE),
          .version = TDNET_VERSION,
          .torch_target = TDNET_TORCH_TARGET,
          .cuda_architectures = TDNET_CUDA_ARCHITECTURES,
          .cuda_status = TDNET_CUDA_STATUS,
          .compiler = __VERSION__,
          .cpu_compiled = cpu::compiled_instruction_sets(),
          .cpu_in_use = cpu::instruction_set_name(),
          .cuda_most_partials = cuda::kMostPartials};
}

void expect_definitions() { definitions_expected = true; }

bool definitions_are_registered() { return definitions_expected; }

}  // namespace tdnet
