// How wide the current device is.

#pragma once

#include "primitives/types.h"

namespace tdnet::cuda {

// Decides how far work is split: results of devices with other counts may differ in rounding.
inline int multiprocessor_count() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
}

}  // namespace tdnet::cuda
