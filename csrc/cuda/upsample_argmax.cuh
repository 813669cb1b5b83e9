// Bilinear upsampling of logits and arg max over the classes in one pass.

#pragma once

#include "map.h"

namespace tdnet::cuda {

template <class T, class Label>  // Label: uint8_t or int64_t
struct UpsampleArgmax {
  Map<const T> logits;  // its channels are the classes
  int height;           // of the logits, in pixels
  Label* labels;        // [B, out_height, out_width], contiguous
  int out_height, out_width;
  bool align_corners;
  int batch;
};

template <class T, class Label>
cudaError_t launch_upsample_argmax(const UpsampleArgmax<T, Label>& problem, cudaStream_t stream);

}  // namespace tdnet::cuda
