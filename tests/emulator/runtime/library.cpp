// torch.ops.tdnet_emulator: the schemas of torch.ops.tdnet. Its kernels are those of csrc/cuda, for
// CPU tensors.

#include <torch/csrc/stable/library.h>

#include "bindings.h"
#include "schemas.h"
#include "tensors.h"

STABLE_TORCH_LIBRARY(tdnet_emulator, m) { tdnet::define_operators(m); }

bool tdnet::definitions_are_registered() { return true; }

PYBIND11_MODULE(operators, m) { tdnet_emulator::define_control(m); }
