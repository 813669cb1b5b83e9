// What the kernels of this folder can be told to do wrong, and how Python runs them.

#pragma once

#include <pybind11/numpy.h>

#include <stdexcept>

#include "cuda/primitives/platform.cuh"

enum Bug : int {
  kNone,
  // product.cu
  kNoBarrierAfterWait,
  kNoBarrierAfterUse,
  kNoWait,
  kWaitForOlder,     // the newest copies may still be under way
  kLoadBeyondEnd,    // one row too many
  kStoreBeyondEnd,   // one row too many
  kNoSwizzle,        // right, but slow: bank conflicts
  kLoadsOddChunk,    // a copy from memory that is not 16-byte aligned
  kLittleShared,     // less shared memory than the kernel uses
  kSumsNotCleared,   // sums begin with what stood in shared memory
  kUnalignedVector,  // 16 bytes by a pointer that is not 16-byte aligned
  // misuse.cu
  kBarrierInBranch,  // half the threads never come
  kTwoBarriers,      // the halves of the block come to different ones
  kReturnBeforeBarrier,
  kWarpInBranch,    // half the lanes never come
  kTwoCollectives,  // the halves of a warp come to different ones
  kNotInMask,
  kLaneReturned,
  kCopyNeverWaited,
  kMatrixOutside,
  kMatrixUnaligned,
  kStoreOutside,
  kNoSyncWarp,  // lanes exchange numbers through shared memory
  kNoBarrier,   // warps exchange numbers through static shared memory
  kNoAtomic,
};

// A NumPy array of just this type, C-contiguous: any other raises a TypeError.
template <class T>
struct Numbers : pybind11::array_t<T, pybind11::array::c_style> {
  using pybind11::array_t<T, pybind11::array::c_style>::array_t;
  operator T*() { return this->mutable_data(); }
};

// Raises what the launch did wrong.
template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
         Arguments... arguments) {
  const cudaError_t error = tdnet::cuda::launch(kernel, grid, block, shared, nullptr,
                                                static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
