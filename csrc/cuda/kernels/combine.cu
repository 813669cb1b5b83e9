// A block makes 32 queries x 32 channels of the result, 4 numbers a thread: means are read with
// channels adjacent, and go by way of shared memory (a tile of 32 x 33 float32, 4,224 bytes) to
// where channels or tokens are adjacent.

#include "../../arithmetic.h"
#include "../tiles/maps.cuh"
#include "../tiles/softmax.cuh"
#include "combine.cuh"
#include "grid.h"

namespace tdnet::cuda {
namespace {

constexpr int kSide = 32, kRowsAtOnce = 8;  // 32 x 8 threads

// A query's weights over the parts: one of nothing but -inf weighs 0, one with NaN is NaN.
template <class T>
struct CombinedRow {
  const Attention<T>& p;
  float log2_scale;
  int64_t first, stride;  // of the query in the parts' maxima and row sums
  float maximum = minus_infinity(), total = 0.f;

  __device__ __forceinline__ CombinedRow(const Attention<T>& p, float log2_scale, unsigned b,
                                         int query)
      : p(p),
        log2_scale(log2_scale),
        first(PartialSums::row(0, p.batch, b, p.out.map.tokens, query)),
        stride(PartialSums::row(1, p.batch, 0, p.out.map.tokens, 0)) {
    for (int s = 0; s < p.partial.splits; ++s) {
      maximum = fmaxf(maximum, p.partial.maxima[first + s * stride]);
    }
#pragma unroll 1
    for (int s = 0; s < p.partial.splits; ++s) total += weight(first + s * stride);
  }

  __device__ __forceinline__ float weight(int64_t at) const {
    const float part_maximum = p.partial.maxima[at], row_sum = p.partial.row_sums[at];
    if (part_maximum == minus_infinity()) return row_sum;
    return exp2_with_denormals((part_maximum - maximum) * log2_scale) * row_sum;
  }

  // Of the parts, in their order.
  __device__ __forceinline__ float mean(int channel) const {
    float value = 0.f;
#pragma unroll 1
    for (int s = 0; s < p.partial.splits; ++s) {
      const int64_t at = first + s * stride;
      value += weight(at) / total * p.partial.means[p.partial.mean(at, channel)];
    }
    return value;
  }
};

// Grid: x query tiles of all batches, y tiles of channels.
template <class T>
__global__ void __launch_bounds__(kSide* kRowsAtOnce)
    combine(const __grid_constant__ Attention<T> p, float log2_scale) {
  __shared__ float tile[kSide][kSide + 1];
  const int query_tiles = divide_up(p.out.map.tokens, kSide);
  const unsigned b = blockIdx.x / query_tiles;
  const int first_query = blockIdx.x % query_tiles * kSide, first_channel = blockIdx.y * kSide;
  for (int y = threadIdx.y; y < kSide; y += kRowsAtOnce) {
    const int query = first_query + y, channel = first_channel + threadIdx.x;
    if (query < p.out.map.tokens && channel < p.out.map.channels) {
      const CombinedRow<T> row(p, log2_scale, b, query);
      if (p.log_sum_exp && channel == 0) {
        p.log_sum_exp[token_offset(b, p.out.map.tokens, query, 1)] =
            log_sum_exp(row.maximum * fabsf(p.scale), row.total);
      }
      tile[y][threadIdx.x] = row.mean(channel);
    }
  }
  __syncthreads();
  const Map<const T> bias = p.bias.at(b), residual = p.residual.at(b);
  const Map<T> out = p.out.at(b);
  const bool along_tokens = out.access == Access::kTokens;
  for (int y = threadIdx.y; y < kSide; y += kRowsAtOnce) {
    const int row = along_tokens ? threadIdx.x : y, column = along_tokens ? y : threadIdx.x;
    const int query = first_query + row, channel = first_channel + column;
    if (query < out.tokens && channel < out.channels) {
      float value = tile[row][column];
      if (bias.data) value += number_at(bias, channel, 0);
      if (residual.data) value += number_at(residual, channel, query);
      out.data[out.offset(channel, query)] = Number<T>::from_float(value);
    }
  }
}

}  // namespace

template <class T>
cudaError_t launch_combine(const Attention<T>& problem, float log2_scale, cudaStream_t stream) {
  const dim3 grid(grid_x(divide_up(problem.out.map.tokens, kSide), problem.batch),
                  divide_up(problem.out.map.channels, kSide));
  return launch(combine<T>, grid, dim3(kSide, kRowsAtOnce), 0, stream, problem, log2_scale);
}

#define TDNET_INSTANCES(T) \
  template cudaError_t launch_combine<T>(const Attention<T>&, float, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
