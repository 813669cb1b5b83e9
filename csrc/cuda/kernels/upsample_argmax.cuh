// labels[b, y, x] = the class with the largest logit, bilinearly upsampled, at (y, x).

#pragma once

#include "../tiles/map.h"

namespace tdnet::cuda {

template <class T>
struct UpsampleArgmax {
  Map<const T> logits;  // its channels are the classes
  int height;           // of the logits, in pixels
  int batch;
  bool align_corners;
  int out_height, out_width;
  void* labels;  // [batch, out_height, out_width], contiguous: uint8_t, or int64_t if `wide`
  bool wide;
  bool vectors;  // rows of labels can be written by 16 bytes

  __host__ __device__ int64_t label_offset(int64_t b, int64_t y, int64_t x) const {
    return (b * out_height + y) * out_width + x;
  }
};

template <class T>
cudaError_t launch_upsample_argmax(const UpsampleArgmax<T>& problem, cudaStream_t stream);

}  // namespace tdnet::cuda
