// How launches fill the current device.

#pragma once

#include <algorithm>
#include <cstdint>

#include "../primitives/types.h"

namespace tdnet::cuda {

// Blocks of all batches, or more than a grid holds: the launch then fails with its own error.
inline unsigned grid_x(int64_t tiles, int64_t batch) {
  return static_cast<unsigned>(std::min<int64_t>(tiles * batch, 0xffffffff));
}

// An attribute of the current device; `otherwise` where it cannot be asked.
inline int device_attribute(cudaDeviceAttr attribute, int otherwise) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
    return otherwise;
  }
  return value;
}

// Decides how far work is divided: in the attention kernels, whose parts are added up, results of
// devices with other counts may differ in rounding.
inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount, 1); }

// Bytes of shared memory that one block may have.
inline int shared_memory_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
}

}  // namespace tdnet::cuda
