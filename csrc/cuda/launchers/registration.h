// Where the launchers register their operators: for CUDA tensors, or, in the emulated library of
// tests/emulator, for CPU tensors in a name space of its own.

#pragma once

#include <torch/csrc/stable/library.h>

#ifdef TDNET_EMULATOR
#define TDNET_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(tdnet_emulator, CPU, m)
#else
#define TDNET_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CUDA, m)
#endif
