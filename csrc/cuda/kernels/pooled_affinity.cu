// A block owns 64 keys, which it pools into shared memory once, and walks over tiles of 128
// queries, 8 warps of 32 queries x 32 keys each. More channels than the keys have room for are
// pooled again, slab by slab, for every tile of queries.
//
// Shared memory, in bytes, half precision (float32), for up to 512 bytes of channels:
//   keys     64 x (channels rounded up to 64 bytes + 16)  at most 33,792  (33,792)
//   queries  2 stages x 128 x 80                                  20,480  (20,480)
//   stage    128 x 72 numbers, the finished tile                  18,432  (36,864)
//   in all                                                at most 72,704  (91,136)
// (99 KB a block is what every architecture since sm_80 has.)

#include <algorithm>
#include <climits>

#include "../../arithmetic.h"
#include "../tiles/maps.cuh"
#include "../tiles/product.cuh"
#include "../tiles/vectors.cuh"
#include "grid.h"
#include "pooled_affinity.cuh"

namespace tdnet::cuda {
namespace {

constexpr int kQueries = 128, kKeys = 64, kStages = 2, kStageStride = kKeys + 8;
constexpr int kQueryWarps = 4, kKeyWarps = 2, kThreads = 32 * kQueryWarps * kKeyWarps;
constexpr int kWarpQueries = kQueries / kQueryWarps, kWarpKeys = kKeys / kKeyWarps;
constexpr int kSlabChunks = 8;  // of kDepth channels: those of the keys that fit

using Sums = Accumulator<kWarpQueries / 16, kWarpKeys / 8>;

// Sizes in numbers of type T.
template <class T>
struct Memory {
  static constexpr int kDepth = 64 / sizeof(T), kQueryStride = stride_along<T>(kDepth);
  static constexpr int kQueryStage = kQueries * kQueryStride;

  int slab_chunks, key_stride;

  __host__ __device__ explicit Memory(int channels)
      : slab_chunks(min(divide_up(channels, kDepth), kSlabChunks)),
        key_stride(slab_chunks * kDepth + kVector<T>) {}

  __host__ __device__ int queries() const { return kKeys * key_stride; }
  __host__ __device__ int stage() const { return queries() + kStages * kQueryStage; }
  __host__ __device__ int bytes() const {
    return (stage() + kQueries * kStageStride) * int{sizeof(T)};
  }
};

// --- pool -------------------------------------------------------------------------------------

// The pooled keys of channels `first_channel` + 0 ... columns - 1; zeros outside.
template <class T>
__device__ __forceinline__ void pool_keys(T* tile, int tile_stride, const PooledAffinity<T>& p,
                                          int64_t b, int first_key, int first_channel,
                                          int columns) {
  const Map<const T>& map = p.pixels;
  const bool vectors = map.access == Access::kVectors;
  const int chunks = columns / kVector<T>;
  for (int i = threadIdx.x; i < kKeys * chunks; i += kThreads) {
    // Neighbouring threads take neighbouring channels where these are adjacent, else keys.
    const int row = vectors ? i / chunks : i % kKeys;
    const int column = (vectors ? i % chunks : i / kKeys) * kVector<T>;
    const int key = first_key + row, channel = first_channel + column;
    float best[kVector<T>] = {};
    if (key < p.keys && channel < map.channels) {
      const int x = key % p.pooled_width * p.stride, y = key / p.pooled_width * p.stride;
      const int width = p.subsample ? 1 : min(p.stride, map.width - x);
      const int height = p.subsample ? 1 : min(p.stride, p.pixel_height - y);
      const T* const corner =
          map.data + b * map.batch + y * map.row + x * map.column + channel * map.channel;
      for (int down = 0; down < height; ++down) {
        for (int along = 0; along < width; ++along) {
          const T* const from = corner + down * map.row + along * map.column;
          const bool first = down == 0 && along == 0;
          if (vectors) {
            float numbers[kVector<T>];
            load_vector(from, numbers);
#pragma unroll
            for (int c = 0; c < kVector<T>; ++c) {
              best[c] = first ? numbers[c] : maximum(best[c], numbers[c]);
            }
          } else {
#pragma unroll
            for (int c = 0; c < kVector<T>; ++c) {
              if (channel + c >= map.channels) break;
              const float number = Number<T>::to_float(from[c * map.channel]);
              best[c] = first ? number : maximum(best[c], number);
            }
          }
        }
      }
    }
    store_vector(tile + row * tile_stride + column, best);
  }
}

// --- store ------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void stage_tile(T* stage, const Sums& sums, float scale) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = warp % kQueryWarps * kWarpQueries;
  const int first_column = warp / kQueryWarps * kWarpKeys;
#pragma unroll
  for (int m = 0; m < kWarpQueries / 16; ++m) {
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int row = first_row + 16 * m + fragment_row(lane, i);
        const int column = first_column + 8 * n + fragment_column(lane, i);
        store_pair(stage + row * kStageStride + column, sums.at[m][n][i] * scale,
                   sums.at[m][n][i + 1] * scale);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void store_stage(const T* stage, const PooledAffinity<T>& p, int64_t b,
                                            int first_query, int first_key) {
  if (p.vectors) {
    constexpr int kChunks = kKeys / kVector<T>;
#pragma unroll 1
    for (int first = 0; first < kQueries * kChunks; first += kThreads) {
      const int i = first + threadIdx.x;
      const int row = i / kChunks, column = i % kChunks * kVector<T>;
      const int query = first_query + row, key = first_key + column;
      if (query >= p.queries.tokens || key >= p.keys) continue;
      *reinterpret_cast<uint4*>(p.affinity + p.offset(b, query, key)) =
          *reinterpret_cast<const uint4*>(stage + row * kStageStride + column);
    }
    return;
  }
#pragma unroll 1
  for (int first = 0; first < kQueries * kKeys; first += kThreads) {
    const int i = first + threadIdx.x;
    const int row = i / kKeys, column = i % kKeys;
    const int query = first_query + row, key = first_key + column;
    if (query >= p.queries.tokens || key >= p.keys) continue;
    p.affinity[p.offset(b, query, key)] = stage[row * kStageStride + column];
  }
}

// --- the kernel -------------------------------------------------------------------------------

// Grid: key tiles, within groups of query tiles, within batches.
template <class T, Engine kEngine>
__global__ void __launch_bounds__(kThreads, 2)
    pooled_affinity(const __grid_constant__ PooledAffinity<T> p, int tiles_in_group) {
  constexpr int kDepth = Memory<T>::kDepth, kQueryStride = Memory<T>::kQueryStride;
  TDNET_DYNAMIC_SHARED(memory);
  const Memory<T> shape(p.queries.channels);
  T* const keys = reinterpret_cast<T*>(memory);
  T* const queries = keys + shape.queries();
  T* const stage = keys + shape.stage();

  const int key_tiles = divide_up(p.keys, kKeys);
  const int query_tiles = divide_up(p.queries.tokens, kQueries);
  const int groups = divide_up(query_tiles, tiles_in_group);
  const int group = blockIdx.x / key_tiles % groups;
  const int64_t b = blockIdx.x / key_tiles / groups;
  const int first_key = static_cast<int>(blockIdx.x % key_tiles) * kKeys;
  const int first_tile = group * tiles_in_group;
  const int last_tile = min(first_tile + tiles_in_group, query_tiles);
  const int chunks = divide_up(p.queries.channels, kDepth);

  int next_tile = first_tile, next_chunk = 0, loaded = 0;
  const auto load_next = [&] {
    if (next_tile < last_tile) {
      load_tile<kQueries, kDepth, kThreads>(queries + loaded % kStages * Memory<T>::kQueryStage,
                                            kQueryStride, p.queries.at(b), next_tile * kQueries,
                                            next_chunk * kDepth);
      ++loaded;
      if (++next_chunk == chunks) {
        next_chunk = 0;
        ++next_tile;
      }
    }
    copy_async_commit();
  };
  load_next();
  const bool one_slab = chunks == shape.slab_chunks;
  if (one_slab) pool_keys(keys, shape.key_stride, p, b, first_key, 0, chunks * kDepth);

  const int warp = threadIdx.x / 32;
  const int row = warp % kQueryWarps * kWarpQueries, column = warp / kQueryWarps * kWarpKeys;
  int multiplied = 0;
  for (int tile = first_tile; tile < last_tile; ++tile) {
    Sums sums;
    sums.clear();
    for (int chunk = 0; chunk < chunks; ++chunk, ++multiplied) {
      copy_async_wait<0>();
      __syncthreads();  // The queries are here, and those before them have been read by all.
      if (!one_slab && chunk % kSlabChunks == 0) {
        const int columns = min(kSlabChunks, chunks - chunk) * kDepth;
        pool_keys(keys, shape.key_stride, p, b, first_key, chunk * kDepth, columns);
        __syncthreads();
      }
      load_next();
      multiply_add<kEngine, kDepth, Operand::kDepthAlong>(
          sums, queries + multiplied % kStages * Memory<T>::kQueryStage + row * kQueryStride,
          kQueryStride, keys + column * shape.key_stride + chunk % kSlabChunks * kDepth,
          shape.key_stride);
    }
    stage_tile(stage, sums, p.scale);
    __syncthreads();
    store_stage(stage, p, b, tile * kQueries, first_key);
  }
}

// --- launch -----------------------------------------------------------------------------------

template <class T, Engine kEngine>
cudaError_t launch_engine(const PooledAffinity<T>& p, cudaStream_t stream) {
  // Enough blocks for four waves of two a multiprocessor, then as many tiles of queries for each as
  // there are: the keys are pooled once a block.
  constexpr int64_t kMostTiles = 16;
  const int64_t enough_blocks = 8 * multiprocessor_count();
  const int query_tiles = divide_up(p.queries.tokens, kQueries);
  const int64_t columns = int64_t{divide_up(p.keys, kKeys)} * p.batch;
  const int tiles_in_group =
      static_cast<int>(std::clamp<int64_t>(columns * query_tiles / enough_blocks, 1, kMostTiles));
  const int64_t blocks = columns * divide_up(query_tiles, tiles_in_group);
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  return launch(pooled_affinity<T, kEngine>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                Memory<T>(p.queries.channels).bytes(), stream, p, tiles_in_group);
}

}  // namespace

template <class T>
cudaError_t launch_pooled_affinity(const PooledAffinity<T>& problem, bool allow_tf32,
                                   cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    return launch_engine<T, Engine::kTensorCores>(problem, stream);
  } else {
    return allow_tf32 ? launch_engine<T, Engine::kTf32>(problem, stream)
                      : launch_engine<T, Engine::kFma>(problem, stream);
  }
}

#define TDNET_INSTANCES(T) \
  template cudaError_t launch_pooled_affinity<T>(const PooledAffinity<T>&, bool, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
