// The check of a call of torch's C functions, which return an error code.

#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

// Throws if `call` failed. The headers newer than torch 2.11 pass on what torch says about it.
#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define TDNET_CHECK_TORCH_CALL(call) STABLE_TORCH_ERROR_CODE_CHECK(call)
#else
#define TDNET_CHECK_TORCH_CALL(call) TORCH_ERROR_CODE_CHECK(call)
#endif
