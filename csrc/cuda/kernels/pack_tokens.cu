// A block moves 32 tokens x 32 channels by way of shared memory (32 x 33 numbers), so that
// neighbouring threads read neighbours of the map, whichever these are, and write channels.

#include "../../arithmetic.h"
#include "../primitives/numbers.cuh"
#include "grid.h"
#include "pack_tokens.cuh"

namespace tdnet::cuda {
namespace {

constexpr int kSide = 32, kRowsAtOnce = 8;  // 32 x 8 threads

// Grid: x token tiles of all batches, y tiles of channels.
template <class T>
__global__ void __launch_bounds__(kSide* kRowsAtOnce)
    pack_tokens(const __grid_constant__ Heads<const T> heads, T* tokens, int64_t channel_stride) {
  __shared__ T tile[kSide][kSide + 1];
  const int token_tiles = divide_up(heads.map.tokens, kSide);
  const unsigned b = blockIdx.x / token_tiles;
  const Map<const T> map = heads.at(b);
  const int first_token = blockIdx.x % token_tiles * kSide, first_channel = blockIdx.y * kSide;
  const bool along_channels = map.channel == 1;
  for (int y = threadIdx.y; y < kSide; y += kRowsAtOnce) {
    const int row = along_channels ? y : threadIdx.x, column = along_channels ? threadIdx.x : y;
    const int token = first_token + row, channel = first_channel + column;
    const bool inside = token < map.tokens && channel < map.channels;
    tile[row][column] = inside ? map.data[map.offset(channel, token)] : Number<T>::from_float(0.f);
  }
  __syncthreads();
  for (int y = threadIdx.y; y < kSide; y += kRowsAtOnce) {
    const int token = first_token + y, channel = first_channel + threadIdx.x;
    if (token < map.tokens && channel < channel_stride) {
      tokens[token_offset(b, map.tokens, token, channel_stride) + channel] = tile[y][threadIdx.x];
    }
  }
}

}  // namespace

template <class T>
cudaError_t launch_pack_tokens(const Heads<const T>& heads, int64_t batch, T* tokens,
                               int64_t channel_stride, cudaStream_t stream) {
  const dim3 grid(grid_x(divide_up(heads.map.tokens, kSide), batch),
                  static_cast<unsigned>(divide_up(channel_stride, kSide)));
  return launch(pack_tokens<T>, grid, dim3(kSide, kRowsAtOnce), 0, stream, heads, tokens,
                channel_stride);
}

#define TDNET_INSTANCES(T)                                                                \
  template cudaError_t launch_pack_tokens<T>(const Heads<const T>&, int64_t, T*, int64_t, \
                                             cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
