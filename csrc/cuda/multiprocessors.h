// How many blocks the current device runs at once.

#pragma once

#include "primitives/types.h"

namespace tdnet::cuda {

// Of the current device; decides how far work is split, never the result of a part.
inline int multiprocessor_count() {
#ifdef TDNET_EMULATOR
  return 8;
#else
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
#endif
}

}  // namespace tdnet::cuda
