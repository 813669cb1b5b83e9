// Products of tiles in shared memory, the core of every matrix kernel here.
//
// Three engines, one order of numbers in fragments: tensor cores on float16 or bfloat16, tensor
// cores on float32 rounded to TF32, and fused multiply-adds in full float32. A kernel written on
// top does not know which one it has.
//
// A warp owns 16 * kRowTiles rows and 8 * kColumnTiles columns of the result. Number i of lane l in
// tile (m, n) stands at row 16 m + l / 4 + 8 (i / 2), column 8 n + 2 (l % 4) + i % 2, as
// mma.sync.m16n8 lays it out.

#pragma once

#include "../primitives/matrix.cuh"
#include "../primitives/numbers.cuh"
#include "../primitives/platform.cuh"

namespace tdnet::cuda {

enum class Engine { kTensorCores, kTf32, kFma };

// Elements between two rows of a tile in shared memory. The padding shifts each row against the one
// above it, so that the rows of a fragment lie in different banks.
template <class T>
constexpr int stride_along(int depth) {  // [rows or columns][depth]
  return depth + 16 / int{sizeof(T)};
}
constexpr int stride_down(int columns) {  // [depth][columns]
  return columns + 8;
}

__device__ __forceinline__ int fragment_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
__device__ __forceinline__ int fragment_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

template <int kRowTiles, int kColumnTiles>
struct Accumulator {
  float at[kRowTiles][kColumnTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) at[m][n][i] = 0.f;
      }
    }
  }
};

// Whether the second operand's depth lies along its rows in memory ([columns][depth], as keys in
// q k^T) or down them ([depth][columns], as values in a v).
enum class Operand { kDepthAlong, kDepthDown };

namespace detail {

// Fragments of float16 or bfloat16 operands, 16 deep.
template <class T, int kDepth, Operand kOperand, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void tensor_core_product(Accumulator<kRowTiles, kColumnTiles>& sum,
                                                    const T* a, int a_stride, const T* b,
                                                    int b_stride) {
  static_assert(kDepth % 16 == 0 && kColumnTiles % 2 == 0);
  const int lane = threadIdx.x % 32;
  const Shared a_tile = shared_at(a), b_tile = shared_at(b);
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t a_fragments[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int offset = (16 * m + lane % 16) * a_stride + k + lane / 16 * 8;
      load_matrix_x4<false>(a_fragments[m], a_tile, offset * sizeof(T));
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      uint32_t b_fragments[4];
      if constexpr (kOperand == Operand::kDepthAlong) {
        const int offset = (8 * n + lane / 16 * 8 + lane % 8) * b_stride + k + lane / 8 % 2 * 8;
        load_matrix_x4<false>(b_fragments, b_tile, offset * sizeof(T));
      } else {
        const int offset = (k + lane % 16) * b_stride + 8 * n + lane / 16 * 8;
        load_matrix_x4<true>(b_fragments, b_tile, offset * sizeof(T));
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add_16816<T>(sum.at[m][n], a_fragments[m], b_fragments[0], b_fragments[1]);
        multiply_add_16816<T>(sum.at[m][n + 1], a_fragments[m], b_fragments[2], b_fragments[3]);
      }
    }
  }
}

// Fragments of float32 operands rounded to TF32, 8 deep.
template <int kDepth, Operand kOperand, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void tf32_product(Accumulator<kRowTiles, kColumnTiles>& sum,
                                             const float* a, int a_stride, const float* b,
                                             int b_stride) {
  static_assert(kDepth % 8 == 0);
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
#pragma unroll
  for (int k = 0; k < kDepth; k += 8) {
    uint32_t a_fragments[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * m + group + i % 2 * 8, depth = k + member + i / 2 * 4;
        a_fragments[m][i] = to_tf32(a[row * a_stride + depth]);
      }
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      uint32_t b_fragment[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = 8 * n + group, depth = k + member + i * 4;
        b_fragment[i] = to_tf32(kOperand == Operand::kDepthAlong ? b[column * b_stride + depth]
                                                                 : b[depth * b_stride + column]);
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add_1688_tf32(sum.at[m][n], a_fragments[m], b_fragment[0], b_fragment[1]);
      }
    }
  }
}

// Full float32, 4 deep: one 16-byte load of a row serves every column of the lane.
template <int kDepth, Operand kOperand, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void fma_product(Accumulator<kRowTiles, kColumnTiles>& sum,
                                            const float* a, int a_stride, const float* b,
                                            int b_stride) {
  static_assert(kDepth % 4 == 0);
  const int lane = threadIdx.x % 32;
#pragma unroll 2
  for (int k = 0; k < kDepth; k += 4) {
    float a_row[kRowTiles][2][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + fragment_row(lane, 2 * half);
        const float4 four = *reinterpret_cast<const float4*>(a + row * a_stride + k);
        a_row[m][half][0] = four.x;
        a_row[m][half][1] = four.y;
        a_row[m][half][2] = four.z;
        a_row[m][half][3] = four.w;
      }
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      float b_column[2][4];
      const int column = 8 * n + fragment_column(lane, 0);
      if constexpr (kOperand == Operand::kDepthAlong) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float4 four = *reinterpret_cast<const float4*>(b + (column + i) * b_stride + k);
          b_column[i][0] = four.x;
          b_column[i][1] = four.y;
          b_column[i][2] = four.z;
          b_column[i][3] = four.w;
        }
      } else {
#pragma unroll
        for (int d = 0; d < 4; ++d) {
          const float2 two = *reinterpret_cast<const float2*>(b + (k + d) * b_stride + column);
          b_column[0][d] = two.x;
          b_column[1][d] = two.y;
        }
      }
#pragma unroll
      for (int d = 0; d < 4; ++d) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sum.at[m][n][i] = fmaf(a_row[m][i / 2][d], b_column[i % 2][d], sum.at[m][n][i]);
          }
        }
      }
    }
  }
}

}  // namespace detail

// sum += a b for the rows and columns of one warp. `a` [rows, kDepth] and `b` ([columns, kDepth] or
// [kDepth, columns]) point at the warp's first row and column in shared memory, 16-byte aligned,
// rows `a_stride` and `b_stride` elements apart (stride_along, stride_down). All lanes take part.
template <Engine kEngine, int kDepth, Operand kOperand, class T, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void multiply_add(Accumulator<kRowTiles, kColumnTiles>& sum, const T* a,
                                             int a_stride, const T* b, int b_stride) {
  if constexpr (kEngine == Engine::kTensorCores) {
    detail::tensor_core_product<T, kDepth, kOperand>(sum, a, a_stride, b, b_stride);
  } else if constexpr (kEngine == Engine::kTf32) {
    detail::tf32_product<kDepth, kOperand>(sum, a, a_stride, b, b_stride);
  } else {
    detail::fma_product<kDepth, kOperand>(sum, a, a_stride, b, b_stride);
  }
}

}  // namespace tdnet::cuda
