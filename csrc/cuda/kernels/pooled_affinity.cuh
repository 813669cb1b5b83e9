// affinity[b, query, key] = scale * q[b, :, query] . pool(k)[b, :, key], the logits of Eq. 1.

#pragma once

#include <cstdint>

#include "../tiles/map.h"

namespace tdnet::cuda {

template <class T>
struct PooledAffinity {
  Map<const T> queries;
  Map<const T> pixels;  // of the keys before pooling, `pixel_height` rows
  int pixel_height;
  int stride;
  bool subsample;  // the top-left pixel of each window, else the maximum
  int pooled_width, keys;
  float scale;
  int batch;
  T* affinity;   // [batch, queries, keys]
  bool vectors;  // the rows of `affinity` can be written by 16 bytes

  __host__ __device__ int64_t offset(int64_t b, int64_t query, int64_t key) const {
    return (b * queries.tokens + query) * keys + key;
  }
};

template <class T>
cudaError_t launch_pooled_affinity(const PooledAffinity<T>& problem, bool allow_tf32,
                                   cudaStream_t stream);

}  // namespace tdnet::cuda
