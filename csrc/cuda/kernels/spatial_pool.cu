// A thread makes 16 bytes of channels of one pixel (channels_last), or one number. Neighbouring
// threads make neighbours of the result in memory: in channels_last these read neighbouring
// channels, in NCHW neighbouring windows, so that a warp's reads fill whole lines and every byte of
// x is read once. No shared memory; registers: the numbers and one address.
//
// Bound by memory. Prediction for 512 channels, 97 x 193, stride 4, float16: 19.2 MB in and 1.3 MB
// out, 20.4 MB / 1,555 GB/s = 13 us on an A100, / 3,350 GB/s = 6 us on an H100.

#include <algorithm>
#include <climits>

#include "../../arithmetic.h"
#include "../tiles/vectors.cuh"
#include "spatial_pool.cuh"

namespace tdnet::cuda {
namespace {

constexpr int kThreads = 256;

// The pixels of x under one pixel of the result.
struct Window {
  int x, y, width, height;

  template <class T>
  __device__ __forceinline__ Window(const SpatialPool<T>& p, int token)
      : x(token % p.out.width * p.stride), y(token / p.out.width * p.stride) {
    width = p.subsample ? 1 : min(p.stride, p.x.width - x);
    height = p.subsample ? 1 : min(p.stride, p.height - y);
  }
};

// Grid: the numbers of the result in the order of memory, kRun at a time.
template <class T, int kRun>
__global__ void __launch_bounds__(kThreads)
    spatial_pool(const __grid_constant__ SpatialPool<T> p, int64_t runs) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= runs) return;
  const int64_t channel_runs = p.out.channels / kRun;
  const bool along_tokens = kRun == 1 && p.out.access == Access::kTokens;
  const int64_t line = i / (along_tokens ? p.out.tokens : channel_runs);
  const int column = static_cast<int>(i % (along_tokens ? p.out.tokens : channel_runs));
  const int64_t b = line / (along_tokens ? p.out.channels : p.out.tokens);
  const int row = static_cast<int>(line % (along_tokens ? p.out.channels : p.out.tokens));
  const int token = along_tokens ? column : row;
  const int channel = along_tokens ? row : column * kRun;

  const Window window(p, token);
  const T* corner =
      p.x.data + b * p.x.batch + channel * p.x.channel + window.y * p.x.row + window.x * p.x.column;
  float best[kRun];
#pragma unroll
  for (int c = 0; c < kRun; ++c) best[c] = __int_as_float(0xff800000);  // -inf
  for (int y = 0; y < window.height; ++y) {
#pragma unroll 4  // So many loads are under way.
    for (int x = 0; x < window.width; ++x) {
      const T* from = corner + y * p.x.row + x * p.x.column;
      float numbers[kRun];
      if constexpr (kRun == 1) {
        numbers[0] = Number<T>::to_float(*from);
      } else {
        load_vector(from, numbers);
      }
#pragma unroll
      for (int c = 0; c < kRun; ++c) best[c] = maximum(best[c], numbers[c]);
    }
  }
  T* to = p.out.at(b).data + p.out.offset(channel, token);
  if constexpr (kRun == 1) {
    *to = Number<T>::from_float(best[0]);
  } else {
    store_vector(to, best);
  }
}

template <class T, int kRun>
cudaError_t launch_runs(const SpatialPool<T>& p, cudaStream_t stream) {
  const int64_t runs = int64_t{p.batch} * p.out.tokens * (p.out.channels / kRun);
  const int64_t blocks = divide_up(runs, kThreads);
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  return launch(spatial_pool<T, kRun>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                stream, p, runs);
}

}  // namespace

template <class T>
cudaError_t launch_spatial_pool(const SpatialPool<T>& problem, cudaStream_t stream) {
  // Where x can be taken by 16 bytes, so can the result: it is as wide and whole.
  const bool vectors = problem.x.access == Access::kVectors;
  return vectors ? launch_runs<T, kVector<T>>(problem, stream) : launch_runs<T, 1>(problem, stream);
}

#define TDNET_INSTANCES(T) \
  template cudaError_t launch_spatial_pool<T>(const SpatialPool<T>&, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
