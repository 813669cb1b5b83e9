// A kernel that is right if told nothing, and else breaks one rule of CUDA.

#include "cuda/primitives/copy.cuh"
#include "cuda/primitives/matrix.cuh"
#include "planted.h"

namespace misuse {

using namespace tdnet::cuda;

constexpr int kThreads = 64, kSharedBytes = 2048;

__device__ void barriers(Bug bug) {
  const bool first_half = threadIdx.x < kThreads / 2;
  if (bug == kBarrierInBranch && first_half) return __syncwarp();
  if (bug == kTwoBarriers && first_half) return __syncthreads();
  __syncthreads();
}

// Threads that wait for each other in two places at once.
__device__ void lanes(Bug bug) {
  const int lane = threadIdx.x % 32;
  if (bug == kWarpInBranch && lane < 16) return __syncthreads();
  if (bug == kTwoCollectives && lane < 16) return static_cast<void>(__ballot_sync(~0u, 1));
  __syncwarp(bug == kNotInMask ? 0xfffffffeu : ~0u);
}

__device__ void shared_memory(Bug bug, const uint4* input) {
  TDNET_DYNAMIC_SHARED(memory);
  const Shared shared = shared_at(memory);
  uint32_t fragment[4] = {};
  if (bug == kCopyNeverWaited) copy_async_16(shared, 1024 + threadIdx.x % 2 * 16, input, true);
  if (bug == kMatrixOutside) load_matrix_x4<false>(fragment, shared, kSharedBytes);
  if (bug == kMatrixUnaligned) load_matrix_x4<false>(fragment, shared, 8);
  if (bug == kStoreOutside)
    store_shared_16(shared, kSharedBytes - 8 + threadIdx.x % 2 * 8, fragment);
}

// Every number moves to the right, in the warp and then in the block.
__device__ void exchange(Bug bug, const float* input, float* out) {
  TDNET_DYNAMIC_SHARED(memory);
  __shared__ float all[kThreads];
  float* const dynamic = reinterpret_cast<float*>(memory);
  const int thread = threadIdx.x, lane = thread % 32;
  dynamic[thread] = input[blockIdx.x * kThreads + thread];
  if (bug != kNoSyncWarp) __syncwarp();
  all[thread] = dynamic[thread - lane + (lane + 31) % 32];
  if (bug != kNoBarrier) __syncthreads();
  out[blockIdx.x * kThreads + thread] = all[(thread + kThreads - 1) % kThreads];
}

__device__ void count(Bug bug, int* counter) {
  if (bug == kNoAtomic) {
    ++*counter;
  } else {
    atomicAdd(counter, 1);
  }
}

__global__ void misuse(const float* input, float* out, int* counter, Bug bug) {
  if (bug == kLaneReturned && threadIdx.x == 3) return;
  lanes(bug);
  if (bug == kReturnBeforeBarrier && threadIdx.x == 5) return;
  barriers(bug);
  shared_memory(bug, reinterpret_cast<const uint4*>(input));
  exchange(bug, input, out);
  count(bug, counter);
}

void define(pybind11::module_& m) {
  // input and out [blocks, 64], 16-byte aligned.
  m.def("misuse", [](Numbers<float> input, Numbers<float> out, Numbers<int> counter, int bug) {
    run(misuse, input.shape(0), kThreads, kSharedBytes, input, out, counter, bug);
  });
  m.def("launch", [](unsigned grid_x, unsigned grid_y, unsigned block, size_t shared) {
    run(misuse, dim3(grid_x, grid_y), block, shared, nullptr, nullptr, nullptr, kNone);
  });
}

}  // namespace misuse
