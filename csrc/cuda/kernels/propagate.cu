// A block owns 64 queries and 128 channels of the result, 4 warps of 16 queries each. Over tiles of
// 64 keys: logits = queries keys^T in chunks of 64 channels (or the given logits), running maximum
// and sum in registers, weights through shared memory as the first operand of weights values.
//
// Shared memory, in bytes (half precision / float32):
//   queries  64 x 64 channels   9,216 / 17,408
//   keys     64 x 64 channels   9,216 / 17,408
//   values   64 x 128 channels 17,408 / 34,816
//   weights  64 x 64 keys       9,216 / 17,408
//   in all                     45,056 / 87,040   (99 KB is what every architecture since sm_80 has)
// The finished tile, 64 x 128 float32, goes out over the first three.
//
// Registers a thread: 64 sums, 32 logits, 4 of the softmax, and the fragments of one product.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../../arithmetic.h"
#include "../primitives/reduce.cuh"
#include "../tiles/maps.cuh"
#include "../tiles/product.cuh"
#include "../tiles/softmax.cuh"
#include "grid.h"
#include "propagate.cuh"

namespace tdnet::cuda {
namespace {

constexpr int kQueries = 64, kKeys = 64, kDepth = 64, kChannels = 128;
constexpr int kWarps = 4, kThreads = 32 * kWarps, kWarpQueries = kQueries / kWarps;
static_assert(kWarpQueries == 16, "a warp's queries are one row tile of the fragments");

using Logits = Accumulator<1, kKeys / 8>;
using Sums = Accumulator<1, kChannels / 8>;

template <class T>
struct SharedTiles {
  static constexpr int kDepthStride = stride_along<T>(kDepth), kKeyStride = stride_along<T>(kKeys);
  static constexpr int kChannelStride = stride_down(kChannels), kStageStride = kChannels + 1;
  static constexpr int kQuerySize = kQueries * kDepthStride, kKeySize = kKeys * kDepthStride;
  static constexpr int kValueSize = kKeys * kChannelStride, kWeightSize = kQueries * kKeyStride;
  static constexpr size_t kBytes = (kQuerySize + kKeySize + kValueSize + kWeightSize) * sizeof(T);
  static_assert(kBytes <= 99 * 1024);
  static_assert(kQueries * kStageStride * 4 <= (kQuerySize + kKeySize + kValueSize) * sizeof(T));

  T *queries, *keys, *values, *weights;
  float* stage;

  __device__ explicit SharedTiles(unsigned char* memory)
      : queries(reinterpret_cast<T*>(memory)),
        keys(queries + kQuerySize),
        values(keys + kKeySize),
        weights(values + kValueSize),
        stage(reinterpret_cast<float*>(memory)) {}
};

// Sums of unnormalised weights overflow where values are large: 100 equal logits make 100 times the
// value. Where a number of T can be that large, the sums are normalised at every tile: they are the
// weighted mean of the values so far. Not in float16, whose sums fit in float32 whatever the
// values, and whose small weights would lose precision.
template <class T>
constexpr bool kMeans = !std::is_same_v<T, __half>;

// The maximum and the sum of weights of the two rows that a lane holds numbers of: with kMeans of
// the whole row, else of this lane's keys.
struct RowState {
  float maximum[2], sum[2];
};

// The keys of one block: whole tiles, as even as the split allows.
struct KeyRange {
  int first, last;

  __device__ KeyRange(int key_count, int split, int splits) {
    const int64_t tiles = divide_up(int64_t{key_count}, kKeys);
    first = static_cast<int>(tiles * split / splits * kKeys);
    last = static_cast<int>(min(tiles * (split + 1) / splits * kKeys, int64_t{key_count}));
  }
};

// logits = queries keys^T for 64 keys from first_key on. The copy of the first chunk is under way,
// and one newer group of copies with it; further chunks are loaded here.
template <Engine kEngine, class T>
__device__ __forceinline__ void compute_logits(const Attention<T>& p, SharedTiles<T>& tiles,
                                               unsigned b, int first_query, int first_key,
                                               Logits& logits) {
  using Tiles = SharedTiles<T>;
  logits.clear();
  for (int channel = 0;; channel += kDepth) {
    if (channel == 0) {
      copy_async_wait<1>();
    } else {
      load_tile<kQueries, kDepth, kThreads>(tiles.queries, Tiles::kDepthStride, p.queries.at(b),
                                            first_query, channel);
      load_tile<kKeys, kDepth, kThreads>(tiles.keys, Tiles::kDepthStride, p.keys.at(b), first_key,
                                         channel);
      copy_async_commit();
      copy_async_wait<0>();
    }
    __syncthreads();
    const int row = threadIdx.x / 32 * kWarpQueries;
    multiply_add<kEngine, kDepth, Operand::kDepthAlong>(
        logits, tiles.queries + row * Tiles::kDepthStride, Tiles::kDepthStride, tiles.keys,
        Tiles::kDepthStride);
    if (channel + kDepth >= p.queries.map.channels) return;
    __syncthreads();
  }
}

// The given logits of the warp's queries, whose copy is under way.
template <class T>
__device__ __forceinline__ void read_logits(const SharedTiles<T>& tiles, Logits& logits) {
  copy_async_wait<1>();
  __syncthreads();
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kWarpQueries;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + fragment_row(lane, i), column = 8 * n + fragment_column(lane, i);
      logits.at[0][n][i] =
          Number<T>::to_float(tiles.weights[row * SharedTiles<T>::kKeyStride + column]);
    }
  }
  __syncwarp();  // The weights take the place of the logits.
}

// Of the four neighbouring lanes that hold a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// 1 / sum, or 1 for a row of nothing but -inf: its sums are 0, or NaN by 0 * inf, and stay so.
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0.f ? 1.f : 1.f / sum; }

// Turns logits (times `sign`) into weights 2^((logit - maximum) log2_scale), 0 from key `keys_left`
// on, and the sums so far to the new maximum; with kNormalised both are normalised.
template <bool kNormalised>
__device__ __forceinline__ void softmax_step(Logits& logits, float sign, float log2_scale,
                                             int keys_left, RowState& rows, Sums& sums) {
  const int lane = threadIdx.x % 32;
  float maximum[2] = {rows.maximum[0], rows.maximum[1]};
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      logits.at[0][n][i] *= sign;
      const bool exists = 8 * n + fragment_column(lane, i) < keys_left;
      maximum[i / 2] = fmaxf(maximum[i / 2], exists ? logits.at[0][n][i] : minus_infinity());
    }
  }
  float kept[2];  // what becomes of the sums so far
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    maximum[h] = warp_maximum<4>(maximum[h]);
    // Nothing but -inf so far: no difference may become -inf - -inf.
    const float base = maximum[h] == minus_infinity() ? 0.f : maximum[h];
    kept[h] = rows.maximum[h] == minus_infinity()
                  ? 0.f
                  : exp2_with_denormals((rows.maximum[h] - base) * log2_scale);
    rows.maximum[h] = maximum[h];
    rows.sum[h] *= kept[h];
    maximum[h] = base;
  }
  float tile_sum[2] = {0.f, 0.f};
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool exists = 8 * n + fragment_column(lane, i) < keys_left;
      const float weight = exp2_with_denormals((logits.at[0][n][i] - maximum[i / 2]) * log2_scale);
      logits.at[0][n][i] = exists ? weight : 0.f;
      tile_sum[i / 2] += logits.at[0][n][i];
    }
  }
  if constexpr (kNormalised) {
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float before = rows.sum[h];
      rows.sum[h] += row_sum(tile_sum[h]);
      inverse[h] = inverse_of(rows.sum[h]);
      kept[h] = before * inverse[h];
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) logits.at[0][n][i] *= inverse[i / 2];
    }
  } else {
    rows.sum[0] += tile_sum[0];
    rows.sum[1] += tile_sum[1];
  }
#pragma unroll
  for (int n = 0; n < kChannels / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.at[0][n][i] *= kept[i / 2];
  }
}

// The weighted means at the end, and the whole rows' sums. Of nothing but -inf: still its sums.
template <bool kNormalised>
__device__ __forceinline__ void finish_means(RowState& rows, Sums& sums) {
  if constexpr (!kNormalised) {
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows.sum[h] = row_sum(rows.sum[h]);
      inverse[h] = inverse_of(rows.sum[h]);
    }
#pragma unroll
    for (int n = 0; n < kChannels / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.at[0][n][i] *= inverse[i / 2];
    }
  }
}

template <class T>
__device__ __forceinline__ void store_weights(const Logits& weights, const SharedTiles<T>& tiles) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kWarpQueries;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + fragment_row(lane, i), column = 8 * n + fragment_column(lane, i);
      tiles.weights[row * SharedTiles<T>::kKeyStride + column] =
          Number<T>::from_float(weights.at[0][n][i]);
    }
  }
  __syncwarp();  // A warp reads its own rows only.
}

// The tile of means goes out by way of shared memory, so that neighbouring threads write
// neighbouring addresses in either layout. A row of nothing but -inf is NaN.
template <class T>
__device__ __forceinline__ void store_result(const Attention<T>& p, const SharedTiles<T>& tiles,
                                             unsigned b, int first_query, int first_channel,
                                             const RowState& rows, const Sums& sums) {
  constexpr int kStride = SharedTiles<T>::kStageStride;
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kWarpQueries;
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kChannels / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + fragment_row(lane, i), column = 8 * n + fragment_column(lane, i);
      tiles.stage[row * kStride + column] =
          rows.sum[i / 2] == 0.f ? not_a_number() : sums.at[0][n][i];
    }
  }
  __syncthreads();
  const Map<const T> bias = p.bias.at(b), residual = p.residual.at(b);
  const Map<T> out = p.out.at(b);
  const bool along_tokens = out.access == Access::kTokens;
  for (int i = threadIdx.x; i < kQueries * kChannels; i += kThreads) {
    const int row = along_tokens ? i % kQueries : i / kChannels;
    const int column = along_tokens ? i / kQueries : i % kChannels;
    const int query = first_query + row, channel = first_channel + column;
    if (query >= out.tokens || channel >= out.channels) continue;
    float value = tiles.stage[row * kStride + column];
    if (bias.data) value += number_at(bias, channel, 0);
    if (residual.data) value += number_at(residual, channel, query);
    out.data[out.offset(channel, query)] = Number<T>::from_float(value);
  }
}

template <class T>
__device__ __forceinline__ void store_log_sum_exp(const Attention<T>& p, unsigned b,
                                                  int first_query, const RowState& rows) {
  const int lane = threadIdx.x % 32;
  if (lane % 4 > 0) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int query = first_query + threadIdx.x / 32 * kWarpQueries + fragment_row(lane, 2 * h);
    if (query >= p.out.map.tokens) continue;
    p.log_sum_exp[token_offset(b, p.out.map.tokens, query, 1)] =
        log_sum_exp(rows.maximum[h] * fabsf(p.scale), rows.sum[h]);
  }
}

template <class T>
__device__ __forceinline__ void store_partial(const Attention<T>& p, unsigned b, int split,
                                              int first_query, int first_channel,
                                              const RowState& rows, const Sums& sums) {
  const int lane = threadIdx.x % 32;
  const int queries = p.out.map.tokens;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int query = first_query + threadIdx.x / 32 * kWarpQueries + fragment_row(lane, 2 * h);
    if (query >= queries) continue;
    const int64_t row = PartialSums::row(split, p.batch, b, queries, query);
    if (first_channel == 0 && lane % 4 == 0) {
      p.partial.maxima[row] = rows.maximum[h];
      p.partial.row_sums[row] = rows.sum[h];
    }
#pragma unroll
    for (int n = 0; n < kChannels / 8; ++n) {
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        const int channel = first_channel + 8 * n + fragment_column(lane, i);
        if (channel < p.out.map.channels) {
          p.partial.means[p.partial.mean(row, channel)] = sums.at[0][n][i];
        }
      }
    }
  }
}

// Grid: x query tiles of all batches, y slices of channels, z splits of the keys.
template <class T, Engine kEngine, bool kLogitsGiven>
__global__ void __launch_bounds__(kThreads, 2) propagate(const __grid_constant__ Attention<T> p) {
  using Tiles = SharedTiles<T>;
  TDNET_DYNAMIC_SHARED(memory);
  Tiles tiles(memory);
  const int query_tiles = divide_up(p.out.map.tokens, kQueries);
  const unsigned b = blockIdx.x / query_tiles;
  const int first_query = blockIdx.x % query_tiles * kQueries;
  const int first_channel = blockIdx.y * kChannels;
  const KeyRange range(p.key_count, blockIdx.z, p.partial.splits);

  RowState rows = {{minus_infinity(), minus_infinity()}, {0.f, 0.f}};
  Sums sums;
  sums.clear();
  // The softmax works with a positive scale.
  const float sign = kLogitsGiven || p.scale >= 0.f ? 1.f : -1.f;
  const float log2_scale = kLogitsGiven ? kLog2E : fabsf(p.scale) * kLog2E;

  for (int first_key = range.first; first_key < range.last; first_key += kKeys) {
    __syncthreads();  // The last tile has been read.
    if constexpr (kLogitsGiven) {
      load_tile<kQueries, kKeys, kThreads>(tiles.weights, Tiles::kKeyStride, p.affinity.at(b),
                                           first_query, first_key);
    } else {
      if (first_key == range.first || p.queries.map.channels > kDepth) {
        load_tile<kQueries, kDepth, kThreads>(tiles.queries, Tiles::kDepthStride, p.queries.at(b),
                                              first_query, 0);
      }
      load_tile<kKeys, kDepth, kThreads>(tiles.keys, Tiles::kDepthStride, p.keys.at(b), first_key,
                                         0);
    }
    copy_async_commit();
    load_tile<kKeys, kChannels, kThreads>(tiles.values, Tiles::kChannelStride, p.values.at(b),
                                          first_key, first_channel);
    copy_async_commit();

    Logits logits;
    if constexpr (kLogitsGiven) {
      read_logits(tiles, logits);
    } else {
      compute_logits<kEngine>(p, tiles, b, first_query, first_key, logits);
    }
    softmax_step<kMeans<T>>(logits, sign, log2_scale, p.key_count - first_key, rows, sums);
    store_weights(logits, tiles);
    copy_async_wait<0>();
    __syncthreads();
    const int row = threadIdx.x / 32 * kWarpQueries;
    multiply_add<kEngine, kKeys, Operand::kDepthDown>(sums, tiles.weights + row * Tiles::kKeyStride,
                                                      Tiles::kKeyStride, tiles.values,
                                                      Tiles::kChannelStride);
  }

  finish_means<kMeans<T>>(rows, sums);
  if (p.partial.splits > 1) {
    store_partial(p, b, blockIdx.z, first_query, first_channel, rows, sums);
    return;
  }
  if (p.log_sum_exp && first_channel == 0) store_log_sum_exp(p, b, first_query, rows);
  store_result(p, tiles, b, first_query, first_channel, rows, sums);
}

// --- launch --------------------------------------------------------------------------------------

template <class T, Engine kEngine>
cudaError_t launch_engine(const Attention<T>& p, cudaStream_t stream) {
  const dim3 grid(grid_x(divide_up(p.out.map.tokens, kQueries), p.batch),
                  divide_up(p.out.map.channels, kChannels), p.partial.splits);
  if (p.affinity.data) {
    return launch(propagate<T, kEngine, true>, grid, dim3(kThreads), SharedTiles<T>::kBytes, stream,
                  p);
  }
  return launch(propagate<T, kEngine, false>, grid, dim3(kThreads), SharedTiles<T>::kBytes, stream,
                p);
}

}  // namespace

int propagate_splits(int64_t batch, int queries, int channels, int key_count) {
  // Two blocks a multiprocessor hide each other's copies; a part of fewer than two key tiles would
  // cost more in its sums than it saves.
  const int64_t blocks = batch * divide_up(queries, kQueries) * divide_up(channels, kChannels);
  const int64_t wanted = 2 * multiprocessor_count() / std::max<int64_t>(blocks, 1);
  const int64_t most = divide_up(key_count, 2 * kKeys);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, most));
}

template <class T>
cudaError_t launch_propagate(const Attention<T>& problem, bool allow_tf32, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    return launch_engine<T, Engine::kTensorCores>(problem, stream);
  } else if (allow_tf32) {
    return launch_engine<T, Engine::kTf32>(problem, stream);
  } else {
    return launch_engine<T, Engine::kFma>(problem, stream);
  }
}

#define TDNET_INSTANCES(T) \
  template cudaError_t launch_propagate<T>(const Attention<T>&, bool, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
