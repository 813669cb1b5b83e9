// Pooling of Eq. 3 over windows of stride x stride pixels, ceil mode.

#pragma once

#include "../tiles/map.h"

namespace tdnet::cuda {

template <class T>
struct SpatialPool {
  Map<const T> x;
  int height;  // of x, in pixels
  Map<T> out;
  int stride;
  bool subsample;  // the top-left pixel of a window, else its maximum, NaN if it holds one
  int batch;
};

template <class T>
cudaError_t launch_spatial_pool(const SpatialPool<T>& problem, cudaStream_t stream);

}  // namespace tdnet::cuda
