// c = a b^T by tensor cores, in the shape of the real kernels: copies two stages ahead, swizzled
// tiles, ldmatrix, mma.

#include "cuda/primitives/copy.cuh"
#include "cuda/primitives/matrix.cuh"
#include "cuda/primitives/numbers.cuh"
#include "planted.h"

namespace product {

using namespace tdnet::cuda;

constexpr int kRows = 64, kColumns = 32, kDepth = 32, kThreads = 128;
constexpr int kChunks = kDepth / 8;  // of 16 bytes, in a row
constexpr int kATile = kRows * kDepth * 2, kBTile = kColumns * kDepth * 2;
constexpr int kStage = kATile + kBTile;
constexpr int kSumsAt = 2 * kStage, kSharedBytes = kSumsAt + kRows * 4;

// a [rows, depth], b [columns, depth], c [rows, columns], row_sums [rows] of c; depth % 8 == 0.
template <class T>
struct Product {
  const T *a, *b;
  float *c, *row_sums;
  int rows, columns, depth;
  Bug bug;
};

__device__ uint32_t place_of(int row, int chunk, Bug bug) {
  return (row * kChunks + (bug == kNoSwizzle ? chunk : chunk ^ (row / 2 % kChunks))) * 16;
}

template <class T>
__device__ void start_tile(Shared shared, uint32_t tile_at, const T* from, int row, int rows, int k,
                           const Product<T>& p) {
  const int tile_row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  const int end = p.bug == kLoadBeyondEnd ? rows + 1 : rows;
  const bool valid = row + tile_row < end && k + chunk * 8 < p.depth;
  const T* chunk_from = from + (valid ? (row + tile_row) * p.depth + k + chunk * 8 : 0);
  if (p.bug == kLoadsOddChunk && valid) ++chunk_from;
  copy_async_16(shared, tile_at + place_of(tile_row, chunk, p.bug), chunk_from, valid);
}

template <class T>
__device__ void start_stage(Shared shared, int step, const Product<T>& p) {
  const uint32_t at = step % 2 * kStage;
  const int k = step * kDepth, row = blockIdx.x * kRows, column = blockIdx.y * kColumns;
  constexpr int kRowsAtOnce = kThreads / kChunks;
  for (int first = 0; first < kRows; first += kRowsAtOnce) {
    start_tile(shared, at + first * kDepth * 2, p.a, row + first, p.rows, k, p);
  }
  start_tile(shared, at + kATile, p.b, column, p.columns, k, p);
}

template <class T>
__device__ void multiply_stage(float (&sums)[kColumns / 8][4], Shared shared, int step, Bug bug) {
  const uint32_t at = step % 2 * kStage;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int k = 0; k < kDepth / 16; ++k) {
    uint32_t a[4];
    load_matrix_x4<false>(a, shared, at + place_of(warp * 16 + lane % 16, k * 2 + lane / 16, bug));
    for (int column = 0; column < kColumns; column += 16) {
      uint32_t b[4];
      load_matrix_x4<false>(
          b, shared,
          at + kATile + place_of(column + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2, bug));
      multiply_add_16816<T>(sums[column / 8], a, b[0], b[1]);
      multiply_add_16816<T>(sums[column / 8 + 1], a, b[2], b[3]);
    }
  }
}

template <class T>
__global__ void product(Product<T> p) {
  TDNET_DYNAMIC_SHARED(memory);
  const Shared shared = shared_at(memory);
  float* const row_sums = reinterpret_cast<float*>(memory + kSumsAt);
  if (threadIdx.x < kRows && p.bug != kSumsNotCleared) row_sums[threadIdx.x] = 0.f;

  const int steps = (p.depth + kDepth - 1) / kDepth;
  float sums[kColumns / 8][4] = {};
  start_stage(shared, 0, p);
  copy_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) start_stage(shared, step + 1, p);
    copy_async_commit();
    if (p.bug == kWaitForOlder) {
      copy_async_wait<2>();
    } else if (p.bug != kNoWait) {
      copy_async_wait<1>();
    }
    if (p.bug != kNoBarrierAfterWait) __syncthreads();
    multiply_stage<T>(sums, shared, step, p.bug);
    if (p.bug != kNoBarrierAfterUse) __syncthreads();
  }
  copy_async_wait<0>();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int end = p.bug == kStoreBeyondEnd ? p.rows + 1 : p.rows;
  for (int i = 0; i < kColumns / 8 * 4; ++i) {
    const int tile_row = warp * 16 + lane / 4 + i / 2 % 2 * 8;
    const int row = blockIdx.x * kRows + tile_row;
    const int column = blockIdx.y * kColumns + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row >= end || column >= p.columns) continue;
    p.c[row * p.columns + column] = sums[i / 4][i % 4];
    atomicAdd(&row_sums[tile_row], sums[i / 4][i % 4]);
  }
  __syncthreads();
  const int row = blockIdx.x * kRows + threadIdx.x;
  if (threadIdx.x < kRows && row < p.rows) atomicAdd(&p.row_sums[row], row_sums[threadIdx.x]);
  if (p.bug == kUnalignedVector) {
    const uint4 bits = *reinterpret_cast<const uint4*>(p.c + 1);
    if (threadIdx.x == 0) p.c[1] = __uint_as_float(bits.x);
  }
}

// a and b by their bits.
template <class T>
void run_product(Numbers<uint16_t> a, Numbers<uint16_t> b, Numbers<float> c,
                 Numbers<float> row_sums, int bug) {
  const int rows = a.shape(0), columns = b.shape(0), depth = a.shape(1);
  const auto *a_first = reinterpret_cast<const T*>(a.data()),
             *b_first = reinterpret_cast<const T*>(b.data());
  const int bytes = bug == kLittleShared ? kSharedBytes - 512 : kSharedBytes;
  const dim3 grid((rows + kRows - 1) / kRows, (columns + kColumns - 1) / kColumns);
  run(product<T>, grid, kThreads, bytes,
      Product<T>{a_first, b_first, c, row_sums, rows, columns, depth, static_cast<Bug>(bug)});
}

void define(pybind11::module_& m) {
  m.def("product_half", run_product<__half>);
  m.def("product_bfloat16", run_product<__nv_bfloat16>);
}

}  // namespace product
