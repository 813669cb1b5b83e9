// One warp or one block that shows what each primitive gives every lane.

#include "cuda/primitives/matrix.cuh"
#include "cuda/primitives/numbers.cuh"
#include "cuda/primitives/reduce.cuh"
#include "planted.h"

namespace {

using namespace tdnet::cuda;

enum Kind : int { kHalf, kBfloat16, kTf32 };

// Fragments a [32, 4], b [32, 2], d [32, 4] of each lane.
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* d, Kind kind) {
  const int lane = threadIdx.x;
  uint32_t a_lane[4];
  float d_lane[4];
  for (int i = 0; i < 4; ++i) a_lane[i] = a[lane * 4 + i];
  for (int i = 0; i < 4; ++i) d_lane[i] = d[lane * 4 + i];
  const uint32_t b0 = b[lane * 2], b1 = b[lane * 2 + 1];
  if (kind == kHalf) {
    multiply_add_16816<__half>(d_lane, a_lane, b0, b1);
  } else if (kind == kBfloat16) {
    multiply_add_16816<__nv_bfloat16>(d_lane, a_lane, b0, b1);
  } else {
    multiply_add_1688_tf32(d_lane, a_lane, b0, b1);
  }
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = d_lane[i];
}

// numbers [256]: four matrices of rows of 8, one after another; row_stride in bytes.
__global__ void load_matrices(const uint16_t* numbers, uint32_t* fragments, int row_stride,
                              bool transposed) {
  TDNET_DYNAMIC_SHARED(memory);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) {
    reinterpret_cast<uint16_t*>(memory + lane * row_stride)[i] = numbers[lane * 8 + i];
  }
  __syncwarp();
  uint32_t fragment[4];
  const Shared shared = shared_at(memory);
  if (transposed) {
    load_matrix_x4<true>(fragment, shared, lane * row_stride);
  } else {
    load_matrix_x4<false>(fragment, shared, lane * row_stride);
  }
  for (int i = 0; i < 4; ++i) fragments[lane * 4 + i] = fragment[i];
}

// out [8, 32] from x [32].
__global__ void shuffle(const int64_t* x, int64_t* out, int argument, int width) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_sync(~0u, x[lane], argument, width);
  out[32 + lane] = __shfl_up_sync(~0u, x[lane], argument, width);
  out[64 + lane] = __shfl_down_sync(~0u, x[lane], argument, width);
  out[96 + lane] = __shfl_xor_sync(~0u, x[lane], argument, width);
  out[128 + lane] = __ballot_sync(~0u, x[lane] % 3 == 0);
  out[160 + lane] = __any_sync(~0u, x[lane] == argument) * 2 + __all_sync(~0u, x[lane] >= 0);
  out[192 + lane] = static_cast<int64_t>(warp_maximum(static_cast<float>(x[lane])));
  out[224 + lane] = static_cast<int64_t>(warp_sum<8>(static_cast<float>(x[lane])));
}

// votes [rounds, threads] -> out [rounds, threads].
__global__ void vote(const int* votes, int* out, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    const int at = i * blockDim.x + threadIdx.x;
    out[at] = barrier_or(votes[at] != 0);
  }
}

// Who ran, in what order: out [threads of all blocks].
__global__ void order(int* next, int* out, bool collectives) {
  if (collectives) __syncwarp();
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[atomicAdd(next, 1)] = block * 1000 + thread;
}

__global__ void extremes(const int* x, int* least, int* most) {
  atomicMin(least, x[threadIdx.x]);
  atomicMax(most, x[threadIdx.x]);
}

// What a block finds in its shared memory: static [32], dynamic [32].
__global__ void find_shared(float* out) {
  TDNET_DYNAMIC_SHARED(memory);
  __shared__ float fixed[32];
  float* const here = out + blockIdx.x * 64 + threadIdx.x;
  here[0] = fixed[threadIdx.x];
  here[32] = reinterpret_cast<float*>(memory)[threadIdx.x];
  fixed[threadIdx.x] = reinterpret_cast<float*>(memory)[threadIdx.x] = 1.f;
}

template <class... Parameters, class... Arguments>
int run(void (*kernel)(Parameters...), int threads, size_t shared, Arguments... arguments) {
  return launch(kernel, dim3(1), dim3(threads), shared, nullptr, arguments...);
}

}  // namespace

TDNET_EXPORT int run_multiply(const uint32_t* a, const uint32_t* b, float* d, int kind) {
  return run(multiply, 32, 0, a, b, d, static_cast<Kind>(kind));
}
TDNET_EXPORT int run_load_matrices(const uint16_t* numbers, uint32_t* fragments, int row_stride,
                                   bool transposed) {
  return run(load_matrices, 32, 32 * row_stride, numbers, fragments, row_stride, transposed);
}
TDNET_EXPORT int run_shuffle(const int64_t* x, int64_t* out, int argument, int width) {
  return run(shuffle, 32, 0, x, out, argument, width);
}
TDNET_EXPORT int run_vote(const int* votes, int* out, int rounds, int threads) {
  return run(vote, threads, 0, votes, out, rounds);
}
TDNET_EXPORT int run_order(int* next, int* out, bool collectives) {
  return launch(order, dim3(3, 2, 2), dim3(8, 4, 3), 0, nullptr, next, out, collectives);
}
TDNET_EXPORT int run_extremes(const int* x, int* least, int* most, int threads) {
  return run(extremes, threads, 0, x, least, most);
}
TDNET_EXPORT int run_find_shared(float* out, int blocks) {
  return launch(find_shared, dim3(blocks), dim3(32), 128, nullptr, out);
}

TDNET_EXPORT void round_to_half(const float* x, uint16_t* half, uint16_t* bfloat16, uint32_t* tf32,
                                int count) {
  for (int i = 0; i < count; ++i) {
    half[i] = __half_as_ushort(Number<__half>::from_float(x[i]));
    bfloat16[i] = __bfloat16_as_ushort(Number<__nv_bfloat16>::from_float(x[i]));
    tf32[i] = to_tf32(x[i]);
  }
}
TDNET_EXPORT void widen_half(float* half, float* bfloat16) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    half[i] = Number<__half>::to_float(__ushort_as_half(bits));
    bfloat16[i] = Number<__nv_bfloat16>::to_float(__ushort_as_bfloat16(bits));
  }
}
TDNET_EXPORT float power_of_two(float x) { return exp2_approximate(x); }
