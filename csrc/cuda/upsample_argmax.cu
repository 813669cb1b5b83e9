// A block makes 32 x 8 labels, a thread one of them: it walks over the classes, blends the four
// logits around its place, and keeps the best. Neighbouring threads share these four, so that
// device memory delivers a block's patch of logits once and the first-level cache the rest; the
// upsampled logits never exist. No shared memory; registers: four addresses, the best, its class.
//
// Prediction for 19 classes, 97 x 193 to 769 x 1537, float32: 1.4 MB of logits in, 1.2 MB of labels
// out; 1.18 million labels x 19 classes x 4 loads from the first-level cache are 2.8 million warp
// loads, 26,000 a multiprocessor of an A100, 4 bytes x 32 lanes in a cycle each: 26,000 cycles /
// 1.41 GHz = 18 us; of an H100 21,000 / 1.98 GHz = 11 us.

#include <algorithm>
#include <climits>
#include <cstdint>

#include "primitives/numbers.cuh"
#include "primitives/platform.cuh"
#include "upsample_argmax.cuh"

namespace tdnet::cuda {
namespace {

constexpr int kColumns = 32, kRows = 8;

// Along one dimension: the logits that an output position lies between, and its share of the
// second.
struct Source {
  int low, high;
  float share;
};

// torch's rule for bilinear upsampling, in float32 as there.
__device__ __forceinline__ Source source_of(int position, int input, int output,
                                            bool align_corners) {
  // No neighbour of weight zero is read: an infinity or a NaN there would spread.
  if (input == output) return {position, position, 0.f};
  float at;
  if (align_corners) {
    const float scale = output > 1 ? static_cast<float>(input - 1) / (output - 1) : 0.f;
    at = scale * position;
  } else {
    const float scale = static_cast<float>(input) / output;
    at = fmaxf(0.f, scale * (position + 0.5f) - 0.5f);
  }
  const int low = min(static_cast<int>(at), input - 1);
  return {low, min(low + 1, input - 1), fminf(fmaxf(at - low, 0.f), 1.f)};
}

// Grid: x patches of a row of patches, y rows of patches (walked with stride), z batches
// (likewise).
template <class T, class Label>
__global__ void __launch_bounds__(kColumns* kRows)
    upsample_argmax(const __grid_constant__ UpsampleArgmax<T, Label> p) {
  const int64_t x = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  if (x >= p.out_width) return;
  const Map<const T>& map = p.logits;
  const Source column = source_of(static_cast<int>(x), map.width, p.out_width, p.align_corners);
  for (int64_t b = blockIdx.z; b < p.batch; b += gridDim.z) {
    for (int64_t y = int64_t{blockIdx.y} * kRows + threadIdx.y; y < p.out_height;
         y += int64_t{gridDim.y} * kRows) {
      const Source row = source_of(static_cast<int>(y), p.height, p.out_height, p.align_corners);
      const T* upper = map.data + b * map.batch + row.low * map.row;
      const T* lower = map.data + b * map.batch + row.high * map.row;
      const int64_t left = column.low * map.column, right = column.high * map.column;
      float best = 0.f;
      int label = 0;
      for (int c = 0; c < map.channels; ++c) {
        const int64_t at = c * map.channel;
        const float above = (1.f - column.share) * Number<T>::to_float(upper[at + left]) +
                            column.share * Number<T>::to_float(upper[at + right]);
        const float below = (1.f - column.share) * Number<T>::to_float(lower[at + left]) +
                            column.share * Number<T>::to_float(lower[at + right]);
        const float logit = (1.f - row.share) * above + row.share * below;
        // NaN is the largest; the first of equals stays.
        if (c == 0 || logit > best || (logit != logit && best == best)) {
          best = logit;
          label = c;
        }
      }
      p.labels[(b * p.out_height + y) * p.out_width + x] = static_cast<Label>(label);
    }
  }
}

}  // namespace

template <class T, class Label>
cudaError_t launch_upsample_argmax(const UpsampleArgmax<T, Label>& problem, cudaStream_t stream) {
  constexpr int kMost = 65535;  // blocks along y and z
  const auto blocks = [](int size, int side) { return (int64_t{size} + side - 1) / side; };
  const dim3 grid(
      static_cast<unsigned>(blocks(problem.out_width, kColumns)),
      static_cast<unsigned>(std::min<int64_t>(blocks(problem.out_height, kRows), kMost)),
      std::min(problem.batch, kMost));
  return launch(upsample_argmax<T, Label>, grid, dim3(kColumns, kRows), 0, stream, problem);
}

#define TDNET_INSTANCES(T)                                                                      \
  template cudaError_t launch_upsample_argmax(const UpsampleArgmax<T, uint8_t>&, cudaStream_t); \
  template cudaError_t launch_upsample_argmax(const UpsampleArgmax<T, int64_t>&, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
