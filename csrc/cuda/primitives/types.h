// The CUDA names that launchers (compiled by the host compiler) share with kernels: element types,
// streams, error codes, __host__ and __device__. The emulator brings its own.

#pragma once

#include <cstddef>
#include <cstdint>

#ifndef TDNET_EMULATOR
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#endif
