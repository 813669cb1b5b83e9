// A block owns 128 tokens (output pixels) and 128 or 64 output channels, 8 warps of 32 tokens and
// half the channels each. The depth of the product is walked in steps of 64 bytes of channels of
// one tap of one block, through a ring of three stages in shared memory.
//
// Shared memory, in bytes, for 128 channels (for 64):
//   3 stages x (128 tokens + 128 (64) channels) x 80     61,440  (46,080)
//   the finished tile in their place, float32            69,632  (36,864)
//   x and y of each token                                 1,024   (1,024)
//   in all                                               70,656  (47,104)
// (99 KB a block is what every architecture since sm_80 has.)
//
// Registers a thread: 64 (32) sums and the fragments of one product; 128 allow two blocks a
// multiprocessor.

#include <algorithm>
#include <climits>

#include "../../arithmetic.h"
#include "../primitives/copy.cuh"
#include "../tiles/product.cuh"
#include "../tiles/vectors.cuh"
#include "convolve.cuh"

namespace tdnet::cuda {
namespace {

static_assert(sizeof(Convolution<float>) <= 4096, "the parameters of a launch");

constexpr int kTokens = 128, kStages = 3;
constexpr int kTokenWarps = 4, kChannelWarps = 2, kThreads = 32 * kTokenWarps * kChannelWarps;
constexpr int kWarpTokens = kTokens / kTokenWarps, kRowTiles = kWarpTokens / 16;

template <class T, int kChannels>
struct TileShape {
  static constexpr int kOutChannels = kChannels;
  static constexpr int kWarpChannels = kOutChannels / kChannelWarps;
  static constexpr int kColumnTiles = kWarpChannels / 8;
  static constexpr int kDepth = 64 / sizeof(T), kChunks = kDepth / kVector<T>;
  static constexpr int kStride = stride_along<T>(kDepth);
  static constexpr int kStageSize = (kTokens + kOutChannels) * kStride;
  static constexpr int kTokenCopies = kTokens * kChunks / kThreads;
  static constexpr int kWeightCopies = kOutChannels * kChunks / kThreads;
  static_assert(kTokens * kChunks % kThreads == 0 && kOutChannels * kChunks % kThreads == 0);
  // Of the finished tile: channels are adjacent, or tokens.
  static constexpr int kChannelRow = kOutChannels + 8, kTokenRow = kTokens + 8;
  static constexpr int kFinished = std::max(kTokens * kChannelRow, kOutChannels* kTokenRow);
  static constexpr int kTileBytes =
      std::max(kStages * kStageSize * int{sizeof(T)}, kFinished* int{sizeof(float)});
  static constexpr int kBytes = kTileBytes + kTokens * int{sizeof(int2)};

  using Sums = Accumulator<kRowTiles, kColumnTiles>;
};

// --- load -------------------------------------------------------------------------------------

// What a block of threads computes.
struct Place {
  int64_t b;
  int first_token, first_channel;
};

// How far a tap moves along a dimension of `size` pixels; INT_MIN if it always leaves the map.
__device__ __forceinline__ unsigned tap_move(int64_t dilation, int tap, int64_t padding, int size) {
  const int64_t pixels = tap * dilation - padding;
  return static_cast<unsigned>(-INT_MAX <= pixels && pixels <= size ? pixels : INT_MIN);
}

// Walks along the depth of the product: a step is kDepth channels of one tap of one block. Every
// thread copies 16 bytes at a time, of the same tokens and output channels in every step of a tap.
template <class Tile, class T>
class Loader {
 public:
  // `positions`: x and y of each token in the output.
  __device__ __forceinline__ Loader(const Convolution<T>& p, const Place& place,
                                    const int2* positions)
      : p_(p), place_(place), positions_(positions) {
    enter_tap();
  }

  __device__ __forceinline__ bool done() const { return block_ == p_.block_count; }

  // Tokens x channels, then output channels x channels of the next step. Asynchronous: commit and
  // wait.
  __device__ __forceinline__ void load(T* stage) {
    const Map<const T>& map = p_.blocks[block_].x;
    const Shared shared = shared_at(stage);
    if (map.access == Access::kVectors) {
#pragma unroll
      for (int i = 0; i < Tile::kTokenCopies; ++i) {
        const int row = copy_row(i, true), column = copy_column(i, true);
        const bool valid = inside_ >> i & 1 && channel_ + column < channels_;
        copy_async_16(shared, (row * Tile::kStride + column) * sizeof(T), pixels_[i] + channel_,
                      valid);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Tile::kTokenCopies; ++i) {
        const bool along_channels = map.channel == 1;
        const int row = copy_row(i, along_channels), column = copy_column(i, along_channels);
        gather_vector(shared, (row * Tile::kStride + column) * sizeof(T),
                      pixels_[i] + channel_ * map.channel, map.channel,
                      inside_ >> i & 1 ? channels_ - channel_ - column : 0);
      }
    }
#pragma unroll
    for (int i = 0; i < Tile::kWeightCopies; ++i) {
      const int row = copy_row(i, true), column = copy_column(i, true);
      const bool valid =
          place_.first_channel + row < p_.out_channels && channel_ + column < channels_;
      copy_async_16(shared, ((kTokens + row) * Tile::kStride + column) * sizeof(T),
                    weights_[i] + channel_, valid);
    }
    next_step();
  }

 private:
  // Where a thread's copy i lies in the tile: neighbouring threads take neighbouring channels where
  // these are adjacent in memory, else tokens.
  static __device__ __forceinline__ int copy_row(int i, bool along_channels) {
    const int copy = i * kThreads + threadIdx.x;
    return along_channels ? copy / Tile::kChunks : copy % kTokens;
  }
  static __device__ __forceinline__ int copy_column(int i, bool along_channels) {
    const int copy = i * kThreads + threadIdx.x;
    return (along_channels ? copy % Tile::kChunks : copy / kTokens) * kVector<T>;
  }

  __device__ __forceinline__ void next_step() {
    channel_ += Tile::kDepth;
    if (channel_ < channels_) return;
    channel_ = 0;
    if (++tap_x_ == p_.kernel) {
      tap_x_ = 0;
      if (++tap_y_ == p_.kernel) {
        tap_y_ = 0;
        ++block_;
      }
    }
    if (!done()) enter_tap();
  }

  __device__ __forceinline__ void enter_tap() {
    const ConvolutionBlock<T>& block = p_.blocks[block_];
    const Map<const T>& map = block.x;
    channels_ = map.channels;
    const unsigned width = map.width, height = block.height;
    const unsigned move_x = tap_move(p_.dilation, tap_x_, p_.padding, map.width);
    const unsigned move_y = tap_move(p_.dilation, tap_y_, p_.padding, block.height);
    const bool along_channels = map.channel == 1;
    inside_ = 0;
#pragma unroll
    for (int i = 0; i < Tile::kTokenCopies; ++i) {
      const int2 position = positions_[copy_row(i, along_channels)];
      // A negative sum wraps around to 2^31 or more; no other sum does.
      const unsigned x = position.x + move_x, y = position.y + move_y;
      const bool inside = x < width && y < height;
      const int64_t offset = place_.b * map.batch + y * map.row + x * map.column +
                             copy_column(i, along_channels) * map.channel;
      pixels_[i] = map.data + (inside ? offset : 0);
      inside_ |= unsigned{inside} << i;
    }
    const T* const weight = block.weight + tap_y_ * block.weight_row + tap_x_ * block.weight_column;
#pragma unroll
    for (int i = 0; i < Tile::kWeightCopies; ++i) {
      const int out_channel = place_.first_channel + copy_row(i, true);
      const bool inside = out_channel < p_.out_channels;
      weights_[i] =
          weight + (inside ? out_channel * block.weight_channel + copy_column(i, true) : 0);
    }
  }

  const Convolution<T>& p_;
  const Place& place_;
  const int2* const positions_;
  int block_ = 0, tap_y_ = 0, tap_x_ = 0, channel_ = 0;  // of the next step
  int channels_;                                         // of the block
  unsigned inside_;                                      // bit i: the pixel of copy i is in the map
  const T* pixels_[Tile::kTokenCopies];                  // of the tap, channel 0 and on
  const T* weights_[Tile::kWeightCopies];
};

// --- store ------------------------------------------------------------------------------------

template <int kRun, class T>
__device__ __forceinline__ void store_run(T* to, const float (&numbers)[kRun]) {
  if constexpr (kRun == 1) {
    *to = Number<T>::from_float(numbers[0]);
  } else {
    store_vector(to, numbers);
  }
}

// A run of numbers of the result, all of the same token or of the same channel.
template <int kRun, class T>
__device__ __forceinline__ void store_result(const Convolution<T>& p, int64_t b, int channel,
                                             int token, const float (&sum)[kRun]) {
  const int along_channels = p.out.channel == 1 ? 1 : 0, along_tokens = 1 - along_channels;
  if (p.sum.data) store_run(p.sum.data + p.sum.offset(b, channel, token), sum);
  float total[kRun] = {};
  for (int a = 0; a <= p.addend_count; ++a) {
    if (a == p.place) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) total[i] += sum[i];
    }
    if (a == p.addend_count) break;
    const Addend<T>& addend = p.addends[a];
    const Map<const T> map = addend.map.at(b);
    if constexpr (kRun > 1) {
      if (addend.vectors && channel < p.out_channels) {
        float numbers[kRun];
        load_vector(map.data + map.offset(channel, token), numbers);
#pragma unroll
        for (int i = 0; i < kRun; ++i) total[i] += numbers[i];
        continue;
      }
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int c = channel + i * along_channels, t = token + i * along_tokens;
      if (c >= p.out_channels) break;
      total[i] += Number<T>::to_float(map.data[map.offset(c, t)]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int c = channel + i * along_channels;
    if (p.bias && c < p.out_channels) total[i] += Number<T>::to_float(p.bias[c * p.bias_stride]);
    if (p.relu && total[i] < 0.f) total[i] = 0.f;  // NaN stays.
    if (c >= p.out_channels) total[i] = 0.f;
  }
  store_run(p.out.data + p.out.offset(b, channel, token), total);
}

// The finished tile, neighbouring threads to neighbouring addresses.
template <class Tile, int kRun, class T>
__device__ __forceinline__ void store_runs(const float* finished, const Convolution<T>& p,
                                           const Place& place) {
  constexpr int kChannelRuns = Tile::kOutChannels / kRun, kTokenRuns = kTokens / kRun;
  const bool channels_last = p.out.channel == 1;
#pragma unroll 1
  for (int first = 0; first < kTokens * kChannelRuns; first += kThreads) {
    const int i = first + threadIdx.x;
    const int row = channels_last ? i / kChannelRuns : i / kTokenRuns;
    const int column = (channels_last ? i % kChannelRuns : i % kTokenRuns) * kRun;
    const int token = place.first_token + (channels_last ? row : column);
    const int channel = place.first_channel + (channels_last ? column : row);
    if (token >= p.out.tokens || channel >= p.out.channels) continue;
    const int stride = channels_last ? Tile::kChannelRow : Tile::kTokenRow;
    float sum[kRun];
    if constexpr (kRun == 1) {
      sum[0] = finished[row * stride + column];
    } else {
#pragma unroll
      for (int j = 0; j < kRun; j += kVector<float>) {
        load_vector(finished + row * stride + column + j,
                    reinterpret_cast<float(&)[kVector<float>]>(sum[j]));
      }
    }
    store_result(p, place.b, channel, token, sum);
  }
}

template <class Tile, class T>
__device__ __forceinline__ void store_tile(float* finished, const Convolution<T>& p,
                                           const Place& place, int first_row, int first_column,
                                           const typename Tile::Sums& sums) {
  const int lane = threadIdx.x % 32;
  const bool channels_last = p.out.channel == 1;
  const int token_stride = channels_last ? Tile::kChannelRow : 1;
  const int channel_stride = channels_last ? 1 : Tile::kTokenRow;
  __syncthreads();  // The last stage has been read.
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row + 16 * m + fragment_row(lane, i);
        const int column = first_column + 8 * n + fragment_column(lane, i);
        finished[row * token_stride + column * channel_stride] = sums.at[m][n][i];
      }
    }
  }
  __syncthreads();
  if (p.out.vectors) {
    store_runs<Tile, kVector<T>>(finished, p, place);
  } else {
    store_runs<Tile, 1>(finished, p, place);
  }
}

// --- the kernel -------------------------------------------------------------------------------

// Calls f(sum, its place in Convolution::sums_before and _after) for each sum of the thread.
template <int kColumnTiles, class F>
__device__ __forceinline__ void for_each_sum(Accumulator<kRowTiles, kColumnTiles>& sums,
                                             const F& f) {
  constexpr int kNumbers = kRowTiles * kColumnTiles * 4;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int number = (m * kColumnTiles + n) * 4 + i;
        f(sums.at[m][n][i], (int64_t{blockIdx.x} * kNumbers + number) * kThreads + threadIdx.x);
      }
    }
  }
}

// Grid: channel tiles, within token tiles, within batches.
template <class T, Engine kEngine, int kOutChannels>
__global__ void __launch_bounds__(kThreads, 2) convolve(const __grid_constant__ Convolution<T> p) {
  using Tile = TileShape<T, kOutChannels>;
  TDNET_DYNAMIC_SHARED(memory);
  T* const stages = reinterpret_cast<T*>(memory);
  int2* const positions = reinterpret_cast<int2*>(memory + Tile::kTileBytes);

  const int channel_tiles = divide_up(p.out.channels, kOutChannels);
  const int token_tiles = divide_up(p.out.tokens, kTokens);
  const unsigned tile = blockIdx.x / channel_tiles;
  const Place place = {
      .b = tile / token_tiles,
      .first_token = static_cast<int>(tile % token_tiles) * kTokens,
      .first_channel = static_cast<int>(blockIdx.x % channel_tiles) * kOutChannels};

  for (int i = threadIdx.x; i < kTokens; i += kThreads) {
    const int token = place.first_token + i;
    positions[i] = make_int2(token % p.out.width, token / p.out.width);
  }
  __syncthreads();

  typename Tile::Sums sums;
  sums.clear();
  if (p.sums_before) {
    for_each_sum(sums, [&](float& sum, int64_t at) { sum = p.sums_before[at]; });
  }

  Loader<Tile, T> loader(p, place, positions);
  int loaded = 0;  // stages
  const auto load_next = [&] {
    if (!loader.done()) loader.load(stages + loaded++ % kStages * Tile::kStageSize);
    copy_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i) load_next();

  const int warp = threadIdx.x / 32;
  const int row = warp % kTokenWarps * kWarpTokens;
  const int column = warp / kTokenWarps * Tile::kWarpChannels;
  for (int multiplied = 0; multiplied < loaded; ++multiplied) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // The stage is here, and the one before it has been read by all.
    load_next();
    const T* const stage = stages + multiplied % kStages * Tile::kStageSize;
    multiply_add<kEngine, Tile::kDepth, Operand::kDepthAlong>(
        sums, stage + row * Tile::kStride, Tile::kStride,
        stage + (kTokens + column) * Tile::kStride, Tile::kStride);
  }
  copy_async_wait<0>();

  if (p.sums_after) {
    for_each_sum(sums, [&](float& sum, int64_t at) { p.sums_after[at] = sum; });
    return;
  }
  store_tile<Tile>(reinterpret_cast<float*>(memory), p, place, row, column, sums);
}

// Grid: x output channels, y weights.
constexpr int kCopyThreads = 128;

template <class T>
__global__ void __launch_bounds__(kCopyThreads)
    copy_weights(const __grid_constant__ WeightCopies<T> p) {
  const WeightCopy<T>& copy = p.copies[blockIdx.y];
  const int64_t out_channel = blockIdx.x;
  const int taps = p.kernel * p.kernel;
  for (int tap = 0; tap < taps; ++tap) {
    const T* from = copy.from + out_channel * copy.out_channel + tap / p.kernel * copy.row +
                    tap % p.kernel * copy.column;
    T* to = copy.to + (out_channel * taps + tap) * copy.padded_channels;
    for (int c = threadIdx.x; c < copy.padded_channels; c += kCopyThreads) {
      to[c] = c < copy.channels ? from[c * copy.channel] : Number<T>::from_float(0.f);
    }
  }
}

// --- launch -----------------------------------------------------------------------------------

template <class T>
int64_t count_tiles(const Convolution<T>& p, int out_channels) {
  return int64_t{p.batch} * divide_up(p.out.tokens, kTokens) *
         divide_up(p.out.channels, out_channels);
}

// Few output channels (queries and keys have 64) would waste half of the wider tile; full float32
// has no registers for it.
template <class T>
int tile_channels(const Convolution<T>& p, bool allow_tf32) {
  const bool tensor_cores = sizeof(T) == 2 || allow_tf32;
  return tensor_cores && p.out.channels > 64 ? 128 : 64;
}

template <class T, Engine kEngine, int kOutChannels>
cudaError_t launch_instance(const Convolution<T>& p, cudaStream_t stream) {
  const int64_t blocks = count_tiles(p, kOutChannels);
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  return launch(convolve<T, kEngine, kOutChannels>, dim3(static_cast<unsigned>(blocks)),
                dim3(kThreads), TileShape<T, kOutChannels>::kBytes, stream, p);
}

}  // namespace

template <class T>
int64_t convolution_sums(const Convolution<T>& problem, bool allow_tf32) {
  const int channels = tile_channels(problem, allow_tf32);
  return count_tiles(problem, channels) * kTokens * channels;
}

template <class T>
cudaError_t launch_convolve(const Convolution<T>& problem, bool allow_tf32, cudaStream_t stream) {
  const bool wide = tile_channels(problem, allow_tf32) == 128;
  if constexpr (sizeof(T) == 2) {
    return wide ? launch_instance<T, Engine::kTensorCores, 128>(problem, stream)
                : launch_instance<T, Engine::kTensorCores, 64>(problem, stream);
  } else if (allow_tf32) {
    return wide ? launch_instance<T, Engine::kTf32, 128>(problem, stream)
                : launch_instance<T, Engine::kTf32, 64>(problem, stream);
  } else {
    return launch_instance<T, Engine::kFma, 64>(problem, stream);
  }
}

template <class T>
cudaError_t launch_copy_weights(const WeightCopies<T>& copies, cudaStream_t stream) {
  const dim3 grid(copies.out_channels, copies.count);
  return launch(copy_weights<T>, grid, dim3(kCopyThreads), 0, stream, copies);
}

#define TDNET_INSTANCES(T)                                                            \
  template int64_t convolution_sums<T>(const Convolution<T>&, bool);                  \
  template cudaError_t launch_convolve<T>(const Convolution<T>&, bool, cudaStream_t); \
  template cudaError_t launch_copy_weights<T>(const WeightCopies<T>&, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
