// One warp or one block that shows what each primitive gives every lane.

#include "cuda/primitives/matrix.cuh"
#include "cuda/primitives/numbers.cuh"
#include "cuda/primitives/reduce.cuh"
#include "planted.h"

namespace intrinsics {

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

void define(pybind11::module_& m) {
  m.def("multiply", [](Numbers<uint32_t> a, Numbers<uint32_t> b, Numbers<float> d, int kind) {
    run(multiply, 1, 32, 0, a, b, d, kind);
  });
  m.def("load_matrices", [](Numbers<uint16_t> numbers, Numbers<uint32_t> fragments, int row_stride,
                            bool transposed) {
    run(load_matrices, 1, 32, 32 * row_stride, numbers, fragments, row_stride, transposed);
  });
  m.def("shuffle", [](Numbers<int64_t> x, Numbers<int64_t> out, int argument, int width) {
    run(shuffle, 1, 32, 0, x, out, argument, width);
  });
  m.def("vote", [](Numbers<int> votes, Numbers<int> out) {
    run(vote, 1, votes.shape(1), 0, votes, out, votes.shape(0));
  });
  m.def("order", [](Numbers<int> next, Numbers<int> out, bool collectives) {
    run(order, dim3(3, 2, 2), dim3(8, 4, 3), 0, next, out, collectives);
  });
  m.def("extremes", [](Numbers<int> x, Numbers<int> least, Numbers<int> most) {
    run(extremes, 1, x.size(), 0, x, least, most);
  });
  m.def("find_shared", [](Numbers<float> out) { run(find_shared, out.shape(0), 32, 128, out); });

  m.def("round_to_half", [](Numbers<float> x, Numbers<uint16_t> half, Numbers<uint16_t> bfloat16,
                            Numbers<uint32_t> tf32) {
    for (int i = 0; i < x.size(); ++i) {
      half[i] = __half_as_ushort(Number<__half>::from_float(x[i]));
      bfloat16[i] = __bfloat16_as_ushort(Number<__nv_bfloat16>::from_float(x[i]));
      tf32[i] = to_tf32(x[i]);
    }
  });
  m.def("widen_half", [](Numbers<float> half, Numbers<float> bfloat16) {
    for (int i = 0; i < 65536; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      half[i] = Number<__half>::to_float(__ushort_as_half(bits));
      bfloat16[i] = Number<__nv_bfloat16>::to_float(__ushort_as_bfloat16(bits));
    }
  });
  m.def("power_of_two", [](float x) { return exp2_approximate(x); });
}

}  // namespace intrinsics
