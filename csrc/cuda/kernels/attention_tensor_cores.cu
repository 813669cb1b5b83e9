// Softmax attention in one pass on mma.sync, after FlashAttention-2, for few query channels (64)
// and many value channels (512 and more).
//
// A block owns 128 queries and a slice of 128 or 256 value channels; the sums of that slice fill
// the registers of 8 warps. A second slice of 256 costs the logits again, 11% of the flops at 512.
// The warps form 4 pairs, a pair owns 32 queries. In logits = queries keys^T its two warps take
// half the keys of a tile each, in sums += weights values half the channels each. For that they
// swap their halves of the weights through shared memory as register images: a fragment is written
// and read by the same lane number, 16 bytes, without bank conflicts.
//
// Pipeline: one barrier a tile of keys. Between the products of tile t with its values each warp
// makes its weights of tile t + 1 in small portions (multiply_and_weigh), so that tensor cores do
// not wait for the softmax. Values t + 1 and keys t + 2 are copied at the same time.
//
// Softmax: weights are 2^((logit - maximum) scale log2(e)), with a maximum that lags behind. It
// moves only when a row's weights in a tile outgrow 2^12, by a vote that rides on the tile's
// barrier. Then, and for the first and a ragged last tile, weigh_exactly makes the tile's weights
// again with the true maximum and rescales the sums. Float16 holds weights up to 2^12 in full
// precision, and down to 2^-24; its sums cannot overflow. Those of bfloat16 could: there the maxima
// are raised so that all weights add up to less than 1, and weights below 2^(-113 + log2(keys)) of
// the largest vanish (ex2.approx.ftz).
//
// Shape: queries x keys x channels       128 x 64 x 256   128 x 32 x 256   128 x 64 x 128
//   shared memory, bytes                        119,880           78,920           87,112
//     values, two tiles                          65,536           32,768           32,768
//     keys, two tiles                            16,384            8,192           16,384
//     weights, two tiles; queries                32,768           16,384           32,768
//     or the result, instead of all three        73,728           73,728           73,728
//     maxima, row sums, work                      5,192            5,192            5,192
//   registers of a thread, sm_80                     255              253              231
//   ... and sm_86 to sm_120, up to                   255              255              249
//     sums / queries / weights             128 / 32 / 32    128 / 32 / 16     64 / 32 / 32
// No register spills on sm_80 to sm_120. One block fills the registers of a multiprocessor. Of the
// two wide shapes the first waits at half as many barriers; the second is for GPUs where a block
// may have 99 KB of shared memory (sm_86, sm_89, sm_120). Up to 128 channels the third does less.

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "../../arithmetic.h"
#include "../primitives/matrix.cuh"
#include "../primitives/reduce.cuh"
#include "../tiles/maps.cuh"
#include "../tiles/product.cuh"
#include "../tiles/softmax.cuh"
#include "../tiles/vectors.cuh"
#include "attention_tensor_cores.cuh"
#include "grid.h"

namespace tdnet::cuda {
namespace {

constexpr int kDepth = 64;  // channels of queries and keys
constexpr int kPairs = 4, kWarps = 2 * kPairs, kThreads = 32 * kWarps;
constexpr int kWarpQueries = 32, kRowTiles = kWarpQueries / 16;  // of a pair of warps
constexpr int kQueries = kPairs * kWarpQueries;
constexpr int kImage = 32 * 16;              // bytes of a register image: one fragment of each lane
constexpr float kOutgrown = 4096.f;          // 2^12
constexpr float kLowest = -3.402823466e38f;  // finite: -inf minus it is -inf, not NaN

template <class T>
struct Parameters {
  Attention<T> problem;
  float log2_scale;  // of the logits as exponents of 2
  float raise;       // of the maxima, so that no sum overflows
  float outgrown;    // a row sum of a tile that moves them
  int query_tiles, slices;
  bool along_tokens;  // tokens are adjacent in `out`, else channels;
  bool vectors;       // 8 of them can be written, and of the residual read, at once.
};

// The part of the problem that a block solves. It stands in shared memory: the registers are full.
template <class T>
struct Work {
  const T *keys, *values;              // the first of key_count, of the slice's channels
  const T *queries, *bias, *residual;  // of the head: all of them
  T* out;
  unsigned b;
  int split, first_query, first_channel, key_count;
};
constexpr int kWorkBytes = sizeof(Work<__half>);

// Numbers of a warp's result on their way out: lines of numbers that are adjacent in `out`, padded
// so that neither writing fragments nor reading lines meets bank conflicts.
template <bool kAlongTokens>
struct Stage {
  static constexpr int kChannels = 64;
  static constexpr int kLines = kAlongTokens ? kChannels : kWarpQueries;
  static constexpr int kRun = kAlongTokens ? kWarpQueries : kChannels;
  static constexpr int kLineStride = kAlongTokens ? kRun + 4 : kRun + 8;
  static constexpr int kBytes = kLines * kLineStride * 4;

  static __device__ __forceinline__ int at(int line, int i) {
    return line * kLineStride + i + i / 32 * 4;
  }
};

template <int kTileKeys, int kSliceChannels>
struct Shape {
  static constexpr int kKeys = kTileKeys, kChannels = kSliceChannels;
  static constexpr int kWarpKeys = kKeys / 2, kWarpChannels = kChannels / 2;
  static constexpr int kKeySteps = kWarpKeys / 16;  // a product is 16 keys deep
  static_assert(kWarpKeys % 16 == 0 && kWarpChannels % 64 == 0);

  // Bytes of one row and of one tile.
  static constexpr int kDepthRow = kDepth * 2, kValueRow = kChannels * 2;
  static constexpr int kQueryTile = kQueries * kDepthRow, kKeyTile = kKeys * kDepthRow;
  static constexpr int kValueTile = kKeys * kValueRow, kWeightTile = kQueries * kKeys * 2;

  // Places in shared memory: two tiles each of values, keys and weights. The queries stand in the
  // place of the weights at first, the result in the place of all at last.
  static constexpr int kValuesAt = 0, kStageAt = 0;
  static constexpr int kKeysAt = kValuesAt + 2 * kValueTile;
  static constexpr int kWeightsAt = kKeysAt + 2 * kKeyTile, kQueriesAt = kWeightsAt;
  static constexpr int kTilesEnd = kWeightsAt + std::max(2 * kWeightTile, kQueryTile);
  static constexpr int kMaximaAt = std::max(kTilesEnd, Stage<true>::kBytes* kWarps);
  static constexpr int kRowSumsAt = kMaximaAt + 2 * kQueries * 4;
  static constexpr int kWorkAt = kRowSumsAt + 2 * kRowTiles * kThreads * 4;
  static constexpr int kBytes = kWorkAt + kWorkBytes;
  static_assert(kWorkAt % 8 == 0);
};

// Grid: x slices of channels, then query tiles, then batches; y parts of the keys, whole tiles, as
// even as can be.
template <class Shape, class T>
__device__ __forceinline__ Work<T> work_of_block(const Parameters<T>& parameters) {
  const Attention<T>& p = parameters.problem;
  const unsigned slices = parameters.slices, query_tiles = parameters.query_tiles;
  const unsigned row = blockIdx.x / slices, b = row / query_tiles;
  const Map<const T> keys = p.keys.at(b), values = p.values.at(b);
  const int64_t tiles = divide_up(int64_t{p.key_count}, Shape::kKeys);
  const int first_key = static_cast<int>(tiles * blockIdx.y / gridDim.y) * Shape::kKeys;
  const int last_key = static_cast<int>(tiles * (blockIdx.y + 1) / gridDim.y) * Shape::kKeys;
  Work<T> work;
  work.queries = p.queries.at(b).data;
  work.bias = p.bias.at(b).data;
  work.residual = p.residual.at(b).data;
  work.out = p.out.at(b).data;
  work.b = b;
  work.split = blockIdx.y;
  work.first_query = (row - b * query_tiles) * kQueries;
  work.first_channel = (blockIdx.x - row * slices) * Shape::kChannels;
  work.key_count = min(last_key, p.key_count) - first_key;
  work.keys = keys.data + keys.long_row_offset(0, first_key);
  work.values = values.data + values.long_row_offset(work.first_channel, first_key);
  return work;
}

template <class T>
__device__ __forceinline__ int64_t offset_of(const Map<T>& map, int channel, int token) {
  if (token < map.width) return map.long_row_offset(channel, token);
  const unsigned y = static_cast<unsigned>(token) / static_cast<unsigned>(map.width);
  return map.long_row_offset(channel, token - static_cast<int>(y) * map.width) + y * map.row;
}

// --- load ----------------------------------------------------------------------------------------

// Tiles in shared memory are rows of 16-byte chunks, chunk c of row r at place c ^ (r % 8): the 8
// rows that ldmatrix reads at once lie in different banks.
__device__ __forceinline__ uint32_t chunk_place(int row, int chunk) {
  return (chunk ^ (row % 8)) * 16;
}

// How the threads of a block share the copy of a tile: thread i takes chunk i % kChunks of row
// i / kChunks, and of every kRowsAtOnce-th row after it.
template <int kRows, int kRowBytes>
struct TileCopy {
  static constexpr int kChunks = kRowBytes / 16, kRowsAtOnce = kThreads / kChunks;
  static_assert(kRows % kRowsAtOnce == 0);
  static_assert(kRowsAtOnce % 8 == 0, "one place in the row serves all rows of a thread");

  static __device__ __forceinline__ int row() { return threadIdx.x / kChunks; }
  static __device__ __forceinline__ int chunk() { return threadIdx.x % kChunks; }

  // `from` is this thread's chunk of the pass. Rows from rows_left on become zeros.
  template <int kPass = 0, class T>
  static __device__ __forceinline__ void start(Shared shared, uint32_t tile_at, const T* from,
                                               int64_t stride, int rows_left) {
    constexpr int kRow = kPass * kRowsAtOnce;
    const uint32_t at = tile_at + row() * kRowBytes + chunk_place(row(), chunk());
    copy_async_16<kRow * kRowBytes>(shared, at, from, row() + kRow < rows_left);
    if constexpr (kRow + kRowsAtOnce < kRows) {
      start<kPass + 1>(shared, tile_at, pin_register(from + kRowsAtOnce * stride), stride,
                       rows_left);
    }
  }
};

template <class Shape, class T>
__device__ __forceinline__ void start_keys(Shared shared, const Map<const T>& keys,
                                           const Work<T>& work, int tile) {
  using Copy = TileCopy<Shape::kKeys, Shape::kDepthRow>;
  const int key = tile * Shape::kKeys;
  const T* from = work.keys + keys.long_row_offset(0, key + Copy::row()) + Copy::chunk() * 8;
  Copy::start(shared, Shape::kKeysAt + tile % 2 * Shape::kKeyTile, from, keys.column,
              work.key_count - key);
}

// Channels beyond the last repeat it: they are not stored.
template <class Shape, class T>
__device__ __forceinline__ void start_values(Shared shared, const Map<const T>& values,
                                             const Work<T>& work, int tile) {
  using Copy = TileCopy<Shape::kKeys, Shape::kValueRow>;
  const int key = tile * Shape::kKeys;
  const T* from = work.values + values.long_row_offset(0, key + Copy::row()) +
                  min(Copy::chunk() * 8, values.channels - 8 - work.first_channel);
  Copy::start(shared, Shape::kValuesAt + tile % 2 * Shape::kValueTile, from, values.column,
              work.key_count - key);
}

// The queries of the block, zeros beyond the last, where 16 bytes of channels can be taken
// together.
template <class T>
__device__ __forceinline__ void start_queries(Shared shared, uint32_t tile_at,
                                              const Map<const T>& queries, const Work<T>& work) {
  constexpr int kChunks = kDepth / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < kQueries * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks, query = work.first_query + row;
    const bool exists = query < queries.tokens;
    const T* from = work.queries + (exists ? offset_of(queries, chunk * 8, query) : 0);
    copy_async_16(shared, tile_at + row * kDepth * 2 + chunk_place(row, chunk), from, exists);
  }
}

// The same for any strides: neighbouring threads take neighbouring queries.
template <class T>
__device__ __forceinline__ void gather_queries(Shared shared, uint32_t tile_at,
                                               const Map<const T>& queries, const Work<T>& work) {
  const int row = threadIdx.x % kQueries, query = work.first_query + row;
  const bool exists = query < queries.tokens;
  const T* from = work.queries + (exists ? offset_of(queries, 0, query) : 0);
#pragma unroll 2
  for (int chunk = threadIdx.x / kQueries; chunk < kDepth / 8; chunk += kThreads / kQueries) {
    uint32_t pairs[4] = {};
    if (exists) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* pair = from + (chunk * 8 + 2 * i) * queries.channel;
        pairs[i] = Number<T>::pack(Number<T>::to_float(pair[0]),
                                   Number<T>::to_float(pair[queries.channel]));
      }
    }
    store_shared_16(shared, tile_at + row * kDepth * 2 + chunk_place(row, chunk), pairs);
  }
}

// The residual of the block comes from memory to the L2 cache while the sums are made.
template <class T>
__device__ __forceinline__ void prefetch_residual(const Map<const T>& residual, bool along_tokens,
                                                  int channels, const Work<T>& work) {
  constexpr int kLine = 64;  // numbers in 128 bytes
  const int lines = along_tokens ? channels : kQueries;
  const int pieces = (along_tokens ? kQueries : channels) / kLine;
#pragma unroll 1
  for (int i = threadIdx.x; i < lines * pieces; i += kThreads) {
    const int line = i / pieces, first = i % pieces * kLine;
    const int query = work.first_query + (along_tokens ? first : line);
    const int channel = work.first_channel + (along_tokens ? line : first);
    if (query < residual.tokens && channel < residual.channels) {
      prefetch_l2(work.residual + offset_of(residual, channel, query));
    }
  }
}

// --- compute -------------------------------------------------------------------------------------

// body(m, h) for each row of a fragment that a lane holds numbers of: row tile m, row lane / 4 + 8
// h.
template <class Body>
__device__ __forceinline__ void for_each_row(Body body) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) body(m, h);
  }
}

// One warp's queries, weights and sums, in registers. (product.cuh has the order of numbers in
// fragments.)
template <class T, class Shape>
struct Warp {
  static constexpr int kKeySteps = Shape::kKeySteps;
  static constexpr int kColumnTiles = Shape::kWarpChannels / 8;
  using Logits = float[kRowTiles][4];      // of 8 keys
  using Weights = uint32_t[kRowTiles][4];  // of 16 keys, first operands of a product

  // Bytes of what a warp of a pair makes or brings. One bit of a place tells the two apart.
  static constexpr uint32_t kHalfOfValues = Shape::kWarpKeys * Shape::kValueRow;
  static constexpr uint32_t kHalfOfWeights = kKeySteps * kRowTiles * kImage;
  static_assert(std::has_single_bit(kHalfOfValues) && Shape::kValuesAt == 0);
  static_assert(std::has_single_bit(kHalfOfWeights));

  Shared shared;
  float* maxima;    // shared, [2][kQueries]: of each warp of a pair
  float* row_sums;  // shared, [2 kRowTiles][kThreads]: of a thread's weights but the newest tile's
  float log2_scale, raise;
  uint32_t key_at, value_at, weight_at;  // this lane's places in the first tiles, for its own half

  uint32_t queries[kRowTiles][kDepth / 16][4];
  Weights weights[kKeySteps];  // of the warp's own half of the keys
  Accumulator<kRowTiles, kColumnTiles> sums;
  float maximum[kRowTiles][2];
  float newest_row_sum[kRowTiles][2];

  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int member() { return threadIdx.x / 32 % 2; }  // of the pair
  static __device__ __forceinline__ int first_query() { return threadIdx.x / 64 * kWarpQueries; }

  __device__ __forceinline__ Warp(unsigned char* memory, float log2_scale, float raise)
      : shared(shared_at(memory)),
        maxima(reinterpret_cast<float*>(memory + Shape::kMaximaAt)),
        row_sums(reinterpret_cast<float*>(memory + Shape::kRowSumsAt) + threadIdx.x),
        log2_scale(log2_scale),
        raise(raise) {
    const int key = member() * Shape::kWarpKeys + lane() % 8;
    key_at = pin_register(Shape::kKeysAt + key * Shape::kDepthRow + chunk_place(key, lane() / 8));
    value_at = pin_register(member() * kHalfOfValues + lane() % 16 * Shape::kValueRow +
                            member() * Shape::kWarpChannels * 2 + chunk_place(lane(), lane() / 16));
    weight_at = pin_register((2 * (threadIdx.x / 64) + member()) * kHalfOfWeights + lane() * 16);
  }

  __device__ __forceinline__ void clear_sums() {
    sums.clear();
    for_each_row([&](int m, int h) {
      maximum[m][h] = log2_scale < 0.f ? -kLowest : kLowest;
      newest_row_sum[m][h] = 0.f;
      row_sums[(2 * m + h) * kThreads] = 0.f;
    });
  }

  __device__ __forceinline__ void take_queries() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = first_query() + m * 16 + lane() % 16;
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        const uint32_t at = row * Shape::kDepthRow + chunk_place(row, 2 * k + lane() / 16);
        load_matrix_x4<false>(queries[m][k], shared, Shape::kQueriesAt + at);
      }
    }
  }

  // logits = queries keys^T for the `group`-th 8 of the warp's keys.
  __device__ __forceinline__ void multiply_queries_keys(Logits& logits, int group, int slot) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) logits[m][i] = 0.f;
    }
#pragma unroll
    for (int k = 0; k < kDepth / 16; k += 2) {
      uint32_t keys[4];
      load_matrix_x4<false>(
          keys, shared,
          (key_at ^ (k * 32)) + slot * Shape::kKeyTile + group * 8 * Shape::kDepthRow);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add_16816<T>(logits[m], queries[m][k], keys[0], keys[1]);
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add_16816<T>(logits[m], queries[m][k + 1], keys[2], keys[3]);
      }
    }
  }

  // Not by fmaf(logit, log2_scale, -log2_scale * maximum): huge logits lose their difference there.
  __device__ __forceinline__ float weight(float logit, float maximum) const {
    return exp2_approximate((logit - maximum) * log2_scale);
  }

  // Of two logits before the scale, as fmaxf.
  __device__ __forceinline__ float higher(float a, float b) const {
    return log2_scale < 0.f ? fminf(a, b) : fmaxf(a, b);
  }

  // Two weights of row (m, h), in the place that `group`'s columns have in a fragment 16 keys deep.
  __device__ __forceinline__ void keep_weights(const Logits& weighed, int m, int h, int group,
                                               Weights (&all)[kKeySteps]) {
    newest_row_sum[m][h] += weighed[m][2 * h] + weighed[m][2 * h + 1];
    all[group / 2][m][2 * (group % 2) + h] =
        Number<T>::pack(weighed[m][2 * h], weighed[m][2 * h + 1]);
  }

  static __device__ constexpr uint32_t image_at(int step, int m) {
    return Shape::kWeightsAt + (step * kRowTiles + m) * kImage;
  }

  // To the other warp of the pair.
  __device__ __forceinline__ void send_weights(const Weights& some, int step, int slot) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      store_shared_16(shared, weight_at + slot * Shape::kWeightTile + image_at(step, m), some[m]);
    }
  }

  // sums += weights values for 16 keys; the warp's own come first, then those of the other warp.
  // between(n) comes after the products of the n-th 8 channels.
  template <class Between>
  __device__ __forceinline__ void multiply_weights_values(int step, int slot, Between between) {
    const bool own = step < kKeySteps;
    step %= kKeySteps;
    Weights received;
    if (!own) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        load_shared_16(
            received[m], shared,
            (weight_at ^ kHalfOfWeights) + slot * Shape::kWeightTile + image_at(step, m));
      }
    }
    const uint32_t half_at = own ? value_at : value_at ^ kHalfOfValues;
    const uint32_t tile = slot * Shape::kValueTile;
    const auto load = [&](uint32_t(&values)[4], int n) {  // of 16 channels
      load_matrix_x4<true>(
          values, shared,
          ((half_at ^ (n % 4 * 32)) + tile) + (step * 16 * Shape::kValueRow + n / 4 * 128));
    };
    uint32_t values[2][4];
    load(values[0], 0);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      if (n % 2 == 0 && n + 2 < kColumnTiles) load(values[(n / 2 + 1) % 2], n / 2 + 1);
      const uint32_t* two = values[n / 2 % 2] + n % 2 * 2;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add_16816<T>(sums.at[m][n], own ? weights[step][m] : received[m], two[0], two[1]);
      }
      between(n);
    }
  }

  // The weights of a tile whose keys are there, from the true maximum of all tiles so far. Other
  // warps see them after it.
  __device__ __forceinline__ void weigh_exactly(int slot, int keys_left) {
    raise_maximum(slot, keys_left);
#pragma unroll
    for (int group = 0; group < 2 * kKeySteps; ++group) {
      Logits logits;
      multiply_queries_keys(logits, group, slot);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          logits[m][i] =
              exists(group, i, keys_left) ? weight(logits[m][i], maximum[m][i / 2]) : 0.f;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) keep_weights(logits, m, h, group, weights);
      }
      if (group % 2 == 1) send_weights(weights[group / 2], group / 2, slot);
    }
    __syncthreads();
  }

  __device__ __forceinline__ bool exists(int group, int i, int keys_left) const {
    return member() * Shape::kWarpKeys + group * 8 + fragment_column(lane(), i) < keys_left;
  }

  // A NaN leaves the maximum as it is: its row is NaN by its weight.
  __device__ __forceinline__ void raise_maximum(int slot, int keys_left) {
    float raised[kRowTiles][2];
    for_each_row([&](int m, int h) { raised[m][h] = maximum[m][h] - raise; });
#pragma unroll
    for (int group = 0; group < 2 * kKeySteps; ++group) {
      Logits logits;
      multiply_queries_keys(logits, group, slot);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // A select: an `if` here becomes a branch.
          float& highest = raised[m][i / 2];
          highest = higher(highest, exists(group, i, keys_left) ? logits[m][i] : highest);
        }
      }
    }
    for_each_row([&](int m, int h) {
      // Four lanes hold a row.
      raised[m][h] = higher(raised[m][h], __shfl_xor_sync(~0u, raised[m][h], 1));
      raised[m][h] = higher(raised[m][h], __shfl_xor_sync(~0u, raised[m][h], 2));
      if (lane() % 4 == 0) maxima[member() * kQueries + row(m, h)] = raised[m][h];
    });
    __syncthreads();
    for_each_row([&](int m, int h) {
      raised[m][h] = higher(raised[m][h], maxima[(member() ^ 1) * kQueries + row(m, h)]);
      raised[m][h] += raise;
      const float correction = weight(maximum[m][h], raised[m][h]);
      maximum[m][h] = raised[m][h];
      row_sums[(2 * m + h) * kThreads] *= correction;
      newest_row_sum[m][h] = 0.f;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        sums.at[m][n][2 * h] *= correction;
        sums.at[m][n][2 * h + 1] *= correction;
      }
    });
  }

  // Of the block's queries.
  __device__ __forceinline__ int row(int m, int h) const {
    return first_query() + m * 16 + fragment_row(lane(), 2 * h);
  }

  // The newest row sums join the others before the next tile's begin.
  __device__ __forceinline__ void collect_row_sums() {
    for_each_row([&](int m, int h) {
      row_sums[(2 * m + h) * kThreads] += newest_row_sum[m][h];
      newest_row_sum[m][h] = 0.f;
    });
  }

  // sums += weights values of the tile in `slot`, and the weights of the next tile. A step of 16
  // keys has room for 8 of the warp's next keys: their logits go first, then one row's weights at a
  // time.
  template <class StartCopies>
  __device__ __forceinline__ void multiply_and_weigh(int slot, StartCopies start_copies) {
    constexpr int kRows = 2 * kRowTiles, kFirst = kColumnTiles / 4;
    constexpr int kCopies = kColumnTiles * 5 / 8;  // where the registers have room for it
    Weights next[kKeySteps];
#pragma unroll
    for (int step = 0; step < 2 * kKeySteps; ++step) {
      __syncwarp();  // Keeps the compiler from gathering the softmax of all steps in one place.
      Logits logits;
      multiply_weights_values(step, slot, [&](int n) {
        if (n == 0) multiply_queries_keys(logits, step, slot ^ 1);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const int m = row / 2, h = row % 2;
          const int when = kFirst + row * (kColumnTiles - kFirst - 1) / kRows;
          if (n == when + 1) keep_weights(logits, m, h, step, next);
          if (n == when) {
            logits[m][2 * h] = weight(logits[m][2 * h], maximum[m][h]);
            logits[m][2 * h + 1] = weight(logits[m][2 * h + 1], maximum[m][h]);
          }
        }
        if (n == kColumnTiles - 1 && step % 2 == 1) {
          send_weights(next[step / 2], step / 2, slot ^ 1);
        }
        if (n == kCopies && step == kKeySteps - 1) start_copies();
      });
    }
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[step][m][i] = next[step][m][i];
      }
    }
  }

  __device__ __forceinline__ void multiply_last(int slot) {
#pragma unroll
    for (int step = 0; step < 2 * kKeySteps; ++step) {
      multiply_weights_values(step, slot, [](int) {});
    }
  }

  // Not by a NaN: it stays in the row's sum whatever the maximum.
  __device__ __forceinline__ bool outgrown(float most) const {
    bool any = false;
    for_each_row([&](int m, int h) { any |= newest_row_sum[m][h] > most; });
    return any;
  }

  // Of all keys, by way of `maxima`. All sums are made when it returns.
  __device__ __forceinline__ void finish_row_sums(float (&total)[kRowTiles][2]) const {
    for_each_row([&](int m, int h) {
      total[m][h] = warp_sum<4>(row_sums[(2 * m + h) * kThreads]);
      if (lane() % 4 == 0) maxima[member() * kQueries + row(m, h)] = total[m][h];
    });
    __syncthreads();
    for_each_row(
        [&](int m, int h) { total[m][h] += maxima[(member() ^ 1) * kQueries + row(m, h)]; });
  }
};

// --- store ---------------------------------------------------------------------------------------

// One warp's part of the result: 64 channels of its queries at a time go out by way of shared
// memory, in lines of numbers that are adjacent in `out`.
template <bool kAlongTokens, class T>
struct Writer {
  using Lines = Stage<kAlongTokens>;
  static constexpr int kPieces = Lines::kLines * Lines::kRun / 8 / 32;  // of 8 numbers, of one lane

  const Parameters<T>& parameters;
  const Work<T>& work;
  float* stage;
  int lane, first_query, first_channel;

  // Where number i of a line belongs.
  __device__ __forceinline__ int query(int line, int i) const {
    return first_query + (kAlongTokens ? i : line);
  }
  __device__ __forceinline__ int channel(int line, int i) const {
    return first_channel + (kAlongTokens ? line : i);
  }
  __device__ __forceinline__ bool exists(int line, int i) const {
    const Map<T>& out = parameters.problem.out.map;
    return query(line, i) < out.tokens && channel(line, i) < out.channels;
  }
  __device__ __forceinline__ float residual(int line, int i) const {
    const Map<const T>& map = parameters.problem.residual.map;
    return Number<T>::to_float(work.residual[offset_of(map, channel(line, i), query(line, i))]);
  }

  __device__ __forceinline__ void write_numbers() const {
    const Map<T>& out = parameters.problem.out.map;
#pragma unroll 1
    for (int at = lane; at < Lines::kLines * Lines::kRun; at += 32) {
      const int line = at / Lines::kRun, i = at % Lines::kRun;
      if (!exists(line, i)) continue;
      float number = stage[Lines::at(line, i)];
      if (work.residual) number += residual(line, i);
      work.out[offset_of(out, channel(line, i), query(line, i))] = Number<T>::from_float(number);
    }
  }

  static __device__ __forceinline__ int piece_line(int piece) { return piece / (Lines::kRun / 8); }
  static __device__ __forceinline__ int piece_first(int piece) {
    return piece % (Lines::kRun / 8) * 8;
  }

  // 16 bytes of the residual for each of this lane's pieces.
  __device__ __forceinline__ void load_residual(uint4 (&pieces)[kPieces]) const {
    const Map<const T>& map = parameters.problem.residual.map;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int line = piece_line(32 * p + lane), first = piece_first(32 * p + lane);
      pieces[p] = make_uint4(0, 0, 0, 0);
      if (map.data && exists(line, first)) {
        const T* from =
            work.residual + map.long_row_offset(channel(line, first), query(line, first));
        pieces[p] = *reinterpret_cast<const uint4*>(from);
      }
    }
  }

  __device__ __forceinline__ void write_vectors(const uint4 (&residuals)[kPieces]) const {
    const Map<T>& out = parameters.problem.out.map;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int line = piece_line(32 * p + lane), first = piece_first(32 * p + lane);
      if (!exists(line, first)) continue;
      const float4* from = reinterpret_cast<const float4*>(stage + Lines::at(line, first));
      const float4 low = from[0], high = from[1];
      float numbers[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      const uint32_t pairs[4] = {residuals[p].x, residuals[p].y, residuals[p].z, residuals[p].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = Number<T>::unpack(pairs[i]);
        numbers[2 * i] += two.x;
        numbers[2 * i + 1] += two.y;
      }
      store_vector(work.out + out.long_row_offset(channel(line, first), query(line, first)),
                   numbers);
    }
  }
};

// The scale has its sign here, as the maxima have.
template <class T, class Shape>
__device__ __forceinline__ void store_log_sum_exp(const Attention<T>& p, const Work<T>& work,
                                                  const Warp<T, Shape>& warp,
                                                  const float (&row_sum)[kRowTiles][2]) {
  if (work.first_channel > 0 || warp.member() > 0 || warp.lane() % 4 > 0) return;
  for_each_row([&](int m, int h) {
    const int query = work.first_query + warp.row(m, h);
    if (query >= p.out.map.tokens) return;
    p.log_sum_exp[token_offset(work.b, p.out.map.tokens, query, 1)] =
        log_sum_exp(warp.maximum[m][h] * p.scale, row_sum[m][h]);
  });
}

template <bool kAlongTokens, class T, class Shape>
__device__ __forceinline__ void store_result(const Parameters<T>& parameters, const Work<T>& work,
                                             unsigned char* memory, const Warp<T, Shape>& warp) {
  using Lines = Stage<kAlongTokens>;
  const Attention<T>& p = parameters.problem;
  const int lane = warp.lane();
  float inverse[kRowTiles][2];
  warp.finish_row_sums(inverse);
  if (p.log_sum_exp) store_log_sum_exp(p, work, warp, inverse);
  for_each_row([&](int m, int h) { inverse[m][h] = __frcp_rn(inverse[m][h]); });
  float* const stage =
      reinterpret_cast<float*>(memory + Shape::kStageAt + threadIdx.x / 32 * Lines::kBytes);
#pragma unroll
  for (int round = 0; round < Shape::kWarpChannels / Lines::kChannels; ++round) {
    const int first_channel =
        work.first_channel + warp.member() * Shape::kWarpChannels + round * Lines::kChannels;
    const Writer<kAlongTokens, T> writer{
        parameters, work, stage, lane, work.first_query + warp.first_query(), first_channel};
    uint4 residuals[Writer<kAlongTokens, T>::kPieces];
    if (parameters.vectors) writer.load_residual(residuals);
    __syncwarp();  // The round before has been read.
#pragma unroll
    for (int n = 0; n < Lines::kChannels / 8; ++n) {
      const int column = 8 * n + fragment_column(lane, 0);
      float bias[2] = {0.f, 0.f};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = first_channel + column + i;
        if (work.bias && channel < p.out.map.channels) {
          bias[i] = Number<T>::to_float(work.bias[p.bias.map.offset(channel, 0)]);
        }
      }
      for_each_row([&](int m, int h) {
        const float* sums = warp.sums.at[m][round * (Lines::kChannels / 8) + n] + 2 * h;
        const int row = m * 16 + fragment_row(lane, 2 * h);
        const float two[2] = {sums[0] * inverse[m][h] + bias[0], sums[1] * inverse[m][h] + bias[1]};
        if constexpr (kAlongTokens) {
          stage[Lines::at(column, row)] = two[0];
          stage[Lines::at(column + 1, row)] = two[1];
        } else {
          *reinterpret_cast<float2*>(stage + Lines::at(row, column)) = make_float2(two[0], two[1]);
        }
      });
    }
    __syncwarp();
    if (parameters.vectors) {
      writer.write_vectors(residuals);
    } else {
      writer.write_numbers();
    }
  }
}

template <class T, class Shape>
__device__ __forceinline__ void store_partial(const Attention<T>& p, const Work<T>& work,
                                              const Warp<T, Shape>& warp) {
  float row_sum[kRowTiles][2];
  warp.finish_row_sums(row_sum);
  for_each_row([&](int m, int h) {
    const int query = work.first_query + warp.row(m, h);
    if (query >= p.out.map.tokens) return;
    // 1: nothing but -inf, all sums are 0 or NaN.
    const float inverse = row_sum[m][h] == 0.f ? 1.f : __frcp_rn(row_sum[m][h]);
    const int64_t row = PartialSums::row(work.split, p.batch, work.b, p.out.map.tokens, query);
    if (work.first_channel == 0 && warp.member() == 0 && warp.lane() % 4 == 0) {
      p.partial.maxima[row] = p.scale < 0.f ? -warp.maximum[m][h] : warp.maximum[m][h];
      p.partial.row_sums[row] = row_sum[m][h];
    }
#pragma unroll
    for (int n = 0; n < Shape::kWarpChannels / 8; ++n) {
      const int channel = work.first_channel + warp.member() * Shape::kWarpChannels + 8 * n +
                          fragment_column(warp.lane(), 0);
      if (channel < p.partial.channel_stride) {
        *reinterpret_cast<float2*>(p.partial.means + p.partial.mean(row, channel)) = make_float2(
            warp.sums.at[m][n][2 * h] * inverse, warp.sums.at[m][n][2 * h + 1] * inverse);
      }
    }
  });
}

// --- kernel --------------------------------------------------------------------------------------

// The sums over all keys. The first two tiles of keys and the first of values are here, for this
// thread at least.
template <class T, class Shape>
__device__ __forceinline__ void make_sums(Warp<T, Shape>& warp, const Attention<T>& p,
                                          const Work<T>& work, float outgrown) {
  warp.clear_sums();
  bool exactly = true;
  int tile = 0;
  for (;; ++tile) {
    const int keys_left = work.key_count - tile * Shape::kKeys;
    if (exactly) warp.weigh_exactly(tile % 2, keys_left);
    warp.collect_row_sums();
    if (keys_left <= Shape::kKeys) break;
    warp.multiply_and_weigh(tile % 2, [&] {
      start_values<Shape>(warp.shared, p.values.map, work, tile + 1);
      start_keys<Shape>(warp.shared, p.keys.map, work, tile + 2);
      copy_async_commit();
    });
    copy_async_wait<0>();
    const bool ragged = work.key_count - tile * Shape::kKeys < 2 * Shape::kKeys;
    exactly = barrier_or(warp.outgrown(outgrown)) || ragged;
  }
  warp.multiply_last(tile % 2);
}

template <class T, class Shape>
__global__ void __launch_bounds__(kThreads, 1) attend(const Parameters<T> parameters) {
  TDNET_DYNAMIC_SHARED(memory);
  const Attention<T>& p = parameters.problem;
  const Shared shared = shared_at(memory);
  Work<T>& work = *reinterpret_cast<Work<T>*>(memory + Shape::kWorkAt);
  if (threadIdx.x == 0) work = work_of_block<Shape>(parameters);
  __syncthreads();

  if (p.queries.map.access == Access::kVectors) {
    start_queries(shared, Shape::kQueriesAt, p.queries.map, work);
  } else {
    gather_queries(shared, Shape::kQueriesAt, p.queries.map, work);
  }
  start_keys<Shape>(shared, p.keys.map, work, 0);
  copy_async_commit();
  start_values<Shape>(shared, p.values.map, work, 0);
  start_keys<Shape>(shared, p.keys.map, work, 1);
  copy_async_commit();
  if (work.residual && p.partial.splits == 1) {
    prefetch_residual(p.residual.map, parameters.along_tokens, Shape::kChannels, work);
  }

  Warp<T, Shape> warp(memory, parameters.log2_scale, parameters.raise);
  copy_async_wait<1>();
  __syncthreads();
  warp.take_queries();  // Weights take their place, after a barrier in weigh_exactly.
  copy_async_wait<0>();
  make_sums(warp, p, work, parameters.outgrown);

  if (p.partial.splits > 1) {
    store_partial(p, work, warp);
  } else if (parameters.along_tokens) {
    store_result<true>(parameters, work, memory, warp);
  } else {
    store_result<false>(parameters, work, memory, warp);
  }
}

// --- launch --------------------------------------------------------------------------------------

// Whether 8 numbers that are adjacent in `out` can be read or written at once in this map.
template <class T>
bool has_vectors(const Map<T>& map, bool along_tokens) {
  const int64_t adjacent = along_tokens ? map.column : map.channel;
  const int64_t multiples =
      along_tokens ? map.tokens | map.batch | map.channel : map.channels | map.batch | map.column;
  return map.width == map.tokens && adjacent == 1 && multiples % 8 == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

template <class T, class Shape>
cudaError_t launch_shape(const Attention<T>& problem, cudaStream_t stream) {
  Parameters<T> parameters{.problem = problem,
                           .log2_scale = problem.scale * kLog2E,
                           .raise = 0.f,
                           .outgrown = kOutgrown,
                           .query_tiles = divide_up(problem.out.map.tokens, kQueries),
                           .slices = divide_up(problem.out.map.channels, Shape::kChannels),
                           .along_tokens = problem.out.map.channel != 1,
                           .vectors = false};
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const int exponent = 12 + std::bit_width(unsigned(problem.key_count));  // kOutgrown each
    parameters.outgrown = std::ldexp(kOutgrown, -exponent);
    parameters.raise = exponent / parameters.log2_scale;
  }
  const Map<const T>& residual = problem.residual.map;
  parameters.vectors = has_vectors(problem.out.map, parameters.along_tokens) &&
                       (!residual.data || has_vectors(residual, parameters.along_tokens));
  const dim3 grid(grid_x(int64_t{parameters.slices} * parameters.query_tiles, problem.batch),
                  problem.partial.splits);
  return launch(attend<T, Shape>, grid, dim3(kThreads), Shape::kBytes, stream, parameters);
}

// The slice that leaves least to do: 64 channels of logits and the slice's own, for each slice.
bool wide_slices(int channels) {
  const auto work = [&](int slice) { return divide_up(channels, slice) * (kDepth + slice); };
  return work(256) <= work(128);
}

}  // namespace

int tensor_core_attention_splits(int64_t batch, int queries, int channels, int key_count) {
  // A block fills a multiprocessor; a part of fewer than two tiles would cost more in its sums than
  // it saves.
  const int slices = divide_up(channels, wide_slices(channels) ? 256 : 128);
  const int64_t blocks = batch * divide_up(queries, kQueries) * slices;
  const int64_t wanted = multiprocessor_count() / std::max<int64_t>(blocks, 1);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, divide_up(key_count, 128)));
}

template <class T>
cudaError_t launch_tensor_core_attention(const Attention<T>& problem, cudaStream_t stream) {
  using Wide = Shape<64, 256>;
  using WideOfFewKeys = Shape<32, 256>;
  using Narrow = Shape<64, 128>;
  if (!wide_slices(problem.out.map.channels)) return launch_shape<T, Narrow>(problem, stream);
  if (shared_memory_limit() < Wide::kBytes) return launch_shape<T, WideOfFewKeys>(problem, stream);
  return launch_shape<T, Wide>(problem, stream);
}

template cudaError_t launch_tensor_core_attention<__half>(const Attention<__half>&, cudaStream_t);
template cudaError_t launch_tensor_core_attention<__nv_bfloat16>(const Attention<__nv_bfloat16>&,
                                                                 cudaStream_t);

}  // namespace tdnet::cuda
