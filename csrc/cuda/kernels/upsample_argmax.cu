// A block makes a patch of 64 x 16 labels; a thread 8 of them, below one another, in registers. The
// logits that the patch lies between come to shared memory as float32, as many classes at a time as
// fit, each number read once, in the order of memory; the upsampled logits never exist.
//
// Shared memory, in bytes:
//   sources  64 columns and 16 rows: what each lies between        960
//   offsets  at most 128 columns and 32 rows of logits           1,280
//   logits   at most 128 columns x 32 rows (a patch of a smaller map: two numbers to each column
//            and row of labels), or more classes of fewer       16,400
//   labels   64 x 16 of 1 or 8 bytes, where the logits were
//   in all                                                      18,640
//
// Bound by instructions where maps grow: by the sm_80 code about 14 a label and class, and 740 a
// thread before and after them. 19 x 97 x 193 to 769 x 1537 has 22.5 million labels x classes: 19
// instructions each, 13.3 million warp instructions. Prediction at full issue rate, not a
// measurement: 22 us on an A100 (432 a cycle at 1.41 GHz), 15 us on an H100 (528 at 1.7 GHz). Its
// memory, 0.7 MB of half precision logits and 1.2 MB of labels, would take 1.2 us at 1,555 GB/s.

#include <climits>
#include <cmath>

#include "../../arithmetic.h"
#include "../primitives/numbers.cuh"
#include "../primitives/platform.cuh"
#include "upsample_argmax.cuh"

namespace tdnet::cuda {
namespace {

constexpr int kColumns = 64, kRows = 16;  // of the patch
constexpr int kThreadRows = 8, kThreads = kColumns * kRows / kThreadRows;
constexpr int kLogits = 2 * kColumns * 2 * kRows + 4;  // in shared memory; one class always fits

// Where a row or column of labels reads: logits[low] * (1 - share) + logits[high] * share.
struct Source {
  int low, high;
  float share;
};

constexpr int kSourceBytes = (kColumns + kRows) * sizeof(Source);
constexpr int kOffsetBytes = 2 * (kColumns + kRows) * sizeof(int64_t);
constexpr int kSharedBytes = kSourceBytes + kOffsetBytes + kLogits * sizeof(float);
static_assert(kSourceBytes % 16 == 0 && kOffsetBytes % 16 == 0 && kThreads >= kColumns + kRows &&
              kColumns * kRows * sizeof(int64_t) <= kLogits * sizeof(float));

// What all blocks share.
struct Plan {
  float row_scale, column_scale;       // rows and columns of logits to one of labels
  unsigned patch_rows, patch_columns;  // of a map of labels
};

// torch's rule in float32, with the fused multiplication that its compilers make of it.
float scale_of(int input, int output, bool align_corners) {
  if (!align_corners) return static_cast<float>(input) / static_cast<float>(output);
  return output > 1 ? static_cast<float>(input - 1) / static_cast<float>(output - 1) : 0.f;
}

__device__ __forceinline__ Source source_of(int at, int input, int output, float scale,
                                            bool align_corners) {
  // No neighbour of weight zero is read: an infinity or a NaN there would spread.
  if (input == output) return {at, at, 0.f};
  const float label = static_cast<float>(at);
  const float position =
      align_corners ? scale * label : fmaxf(0.f, fmaf(scale, label + 0.5f, -0.5f));
  const int low = min(static_cast<int>(position), input - 1);
  const float share = fminf(fmaxf(position - static_cast<float>(low), 0.f), 1.f);
  return {low, min(low + 1, input - 1), share};
}

// The rows or columns of logits that a patch lies between, in the order of shared memory:
// consecutive them or, where labels lie far apart on the logits, two for each label.
struct Axis {
  const Source* sources;
  int first, count;
  bool consecutive;

  __device__ __forceinline__ Axis(const Source* of_labels, int labels)
      : sources(of_labels), first(of_labels[0].low) {
    const int span = of_labels[labels - 1].high - first + 1;
    consecutive = span <= 2 * labels;
    count = consecutive ? span : 2 * labels;
  }
  __device__ __forceinline__ int low_slot(int label) const {
    return consecutive ? sources[label].low - first : 2 * label;
  }
  __device__ __forceinline__ int high_slot(int label) const {
    return consecutive ? sources[label].high - first : 2 * label + 1;
  }
  __device__ __forceinline__ int at(int slot) const {
    if (consecutive) return first + slot;
    return slot % 2 == 0 ? sources[slot / 2].low : sources[slot / 2].high;
  }
  // Where each lies in memory, `stride` apart.
  __device__ __forceinline__ void store_offsets(int64_t* offsets, int64_t stride) const {
    for (int slot = threadIdx.x; slot < count; slot += kThreads) offsets[slot] = at(slot) * stride;
  }
};

// --- load ----------------------------------------------------------------------------------------

// A thread's way through a box of numbers, kThreads at a time, without divisions on the way.
struct Walk {
  unsigned inner_size, middle_size;
  unsigned inner, middle, outer;
  unsigned inner_step, middle_step, outer_step;

  __device__ __forceinline__ Walk(unsigned inner_size, unsigned middle_size)
      : inner_size(inner_size), middle_size(middle_size) {
    const unsigned start = threadIdx.x;
    inner = start % inner_size;
    middle = start / inner_size % middle_size;
    outer = start / inner_size / middle_size;
    inner_step = kThreads % inner_size;
    middle_step = kThreads / inner_size % middle_size;
    outer_step = kThreads / inner_size / middle_size;
  }
  __device__ __forceinline__ void advance() {
    inner += inner_step;
    middle += middle_step;
    outer += outer_step;
    if (inner >= inner_size) inner -= inner_size, ++middle;
    if (middle >= middle_size) middle -= middle_size, ++outer;
  }
};

// The part of a map of logits that a patch lies between, in shared memory.
struct Patch {
  unsigned rows, columns;
  const int64_t *row_offsets, *column_offsets;  // in memory
  float* logits;                                // [class][rows][columns], classes `plane` apart
  int plane;

  // Brings classes 0 ... count - 1 of `from`.
  template <class T>
  __device__ __forceinline__ void load(const T* from, int64_t class_stride, unsigned count) const {
    const auto copy = [&](unsigned c, unsigned row, unsigned column) {
      logits[c * plane + row * columns + column] =
          Number<T>::to_float(from[c * class_stride + row_offsets[row] + column_offsets[column]]);
    };
    // Neighbouring threads take neighbours in memory.
    if (class_stride == 1) {
      for (Walk at(count, columns); at.outer < rows; at.advance()) {
        copy(at.inner, at.outer, at.middle);
      }
    } else {
      for (Walk at(columns, rows); at.outer < count; at.advance()) {
        copy(at.outer, at.middle, at.inner);
      }
    }
  }
};

// --- compute -------------------------------------------------------------------------------------

// The same two roundings for every class, whatever the compiler makes of the loop: equal logits
// stay equal.
__device__ __forceinline__ float blend(float low, float low_share, float high, float high_share) {
  return fmaf(high, high_share, low * low_share);
}

// The best classes so far of one column of kThreadRows labels.
struct Best {
  float low_share[kThreadRows], high_share[kThreadRows];
  int low_row[kThreadRows], high_row[kThreadRows];  // where they begin in a plane of the patch
  float logit[kThreadRows];
  int label[kThreadRows];

  __device__ __forceinline__ Best(const Axis& rows, int row_stride, int first, int labels) {
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      const int row = min(first + r, labels - 1);
      high_share[r] = rows.sources[row].share;
      low_share[r] = 1.f - high_share[r];
      low_row[r] = rows.low_slot(row) * row_stride;
      high_row[r] = rows.high_slot(row) * row_stride;
      logit[r] = -INFINITY;
      label[r] = 0;
    }
  }

  // `widen(row)` is the logit of class c in a row of the patch, at this thread's column.
  template <class Widen>
  __device__ __forceinline__ void compare(int c, const Widen& widen) {
    float above = 0.f, below = 0.f;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
      // Where maps grow, labels below one another mostly lie between the same rows.
      if (r == 0 || low_row[r] != low_row[r - 1]) {
        above = widen(low_row[r]);
        below = widen(high_row[r]);
      }
      const float x = blend(above, low_share[r], below, high_share[r]);
      // NaN is the largest; the first of equals stays.
      const bool better = !(x <= logit[r]) && logit[r] == logit[r];
      logit[r] = better ? x : logit[r];
      label[r] = better ? c : label[r];
    }
  }
};

// --- store ---------------------------------------------------------------------------------------

// Labels [kRows, kColumns] by way of `stage` to `to`, the first of the patch in memory; rows and
// columns beyond the map are left out.
template <class Label>
__device__ __forceinline__ void store_labels(Label* stage, const Best& best, int column,
                                             int first_row, Label* to, int64_t row_stride, int rows,
                                             int columns, bool vectors) {
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    stage[(first_row + r) * kColumns + column] = static_cast<Label>(best.label[r]);
  }
  __syncthreads();
  constexpr int kRun = 16 / int{sizeof(Label)}, kRuns = kColumns / kRun;
  if (vectors) {
    for (int i = threadIdx.x; i < rows * kRuns; i += kThreads) {
      const int row = i / kRuns, x = i % kRuns * kRun;
      if (x >= columns) continue;
      *reinterpret_cast<uint4*>(to + row * row_stride + x) =
          *reinterpret_cast<const uint4*>(stage + row * kColumns + x);
    }
  } else {
    for (int i = threadIdx.x; i < rows * kColumns; i += kThreads) {
      const int row = i / kColumns, x = i % kColumns;
      if (x < columns) to[row * row_stride + x] = stage[i];
    }
  }
}

// --- the kernel ----------------------------------------------------------------------------------

// Grid: patches of a row of patches, within rows of patches, within batches.
template <class T>
__global__ void __launch_bounds__(kThreads, 5)
    upsample_argmax(const __grid_constant__ UpsampleArgmax<T> p, const Plan plan) {
  TDNET_DYNAMIC_SHARED(memory);
  Source* const column_sources = reinterpret_cast<Source*>(memory);
  Source* const row_sources = column_sources + kColumns;
  int64_t* const column_offsets = reinterpret_cast<int64_t*>(memory + kSourceBytes);
  int64_t* const row_offsets = column_offsets + 2 * kColumns;
  float* const logits = reinterpret_cast<float*>(memory + kSourceBytes + kOffsetBytes);

  const unsigned patch_row = blockIdx.x / plan.patch_columns;
  const int64_t b = patch_row / plan.patch_rows;
  const int first_y = static_cast<int>(patch_row % plan.patch_rows) * kRows;
  const int first_x = static_cast<int>(blockIdx.x % plan.patch_columns) * kColumns;
  const int rows = min(kRows, p.out_height - first_y);
  const int columns = min(kColumns, p.out_width - first_x);
  const int thread = threadIdx.x;
  if (thread < columns) {
    column_sources[thread] = source_of(first_x + thread, p.logits.width, p.out_width,
                                       plan.column_scale, p.align_corners);
  } else if (thread >= kColumns && thread < kColumns + rows) {
    const int row = thread - kColumns;
    row_sources[row] =
        source_of(first_y + row, p.height, p.out_height, plan.row_scale, p.align_corners);
  }
  __syncthreads();

  const Axis column_axis(column_sources, columns), row_axis(row_sources, rows);
  column_axis.store_offsets(column_offsets, p.logits.column);
  row_axis.store_offsets(row_offsets, p.logits.row);
  // Odd, so that neighbouring classes lie in different banks.
  const int plane = row_axis.count * column_axis.count | 1;
  const Patch patch{.rows = static_cast<unsigned>(row_axis.count),
                    .columns = static_cast<unsigned>(column_axis.count),
                    .row_offsets = row_offsets,
                    .column_offsets = column_offsets,
                    .logits = logits,
                    .plane = plane};
  const int classes_at_once = kLogits / plane;
  const int column = thread % kColumns, first_row = thread / kColumns * kThreadRows;
  const int source_column = min(column, columns - 1);
  const int left = column_axis.low_slot(source_column);
  const int right = column_axis.high_slot(source_column);
  const float right_share = column_sources[source_column].share, left_share = 1.f - right_share;
  Best best(row_axis, column_axis.count, first_row, rows);

  for (int64_t first = 0; first < p.logits.channels; first += classes_at_once) {
    const int count = static_cast<int>(min(int64_t{classes_at_once}, p.logits.channels - first));
    __syncthreads();  // The offsets are here; the classes before these have been read by all.
    patch.load(p.logits.data + b * p.logits.batch + first * p.logits.channel, p.logits.channel,
               count);
    __syncthreads();
    const float* of_class = logits;
    for (int c = 0; c < count; ++c, of_class += plane) {
      best.compare(static_cast<int>(first) + c, [&](int row) {
        return blend(of_class[row + left], left_share, of_class[row + right], right_share);
      });
    }
  }
  __syncthreads();  // The logits make room for the labels.
  const auto store = [&](auto* stage, auto* to) {
    store_labels(stage, best, column, first_row, to + p.label_offset(b, first_y, first_x),
                 p.out_width, rows, columns, p.vectors);
  };
  if (p.wide) {
    store(reinterpret_cast<int64_t*>(logits), static_cast<int64_t*>(p.labels));
  } else {
    store(reinterpret_cast<uint8_t*>(logits), static_cast<uint8_t*>(p.labels));
  }
}

}  // namespace

template <class T>
cudaError_t launch_upsample_argmax(const UpsampleArgmax<T>& p, cudaStream_t stream) {
  const int64_t rows = divide_up(p.out_height, kRows), columns = divide_up(p.out_width, kColumns);
  if (rows * p.batch > INT_MAX / columns) return cudaErrorInvalidConfiguration;
  const Plan plan{.row_scale = scale_of(p.height, p.out_height, p.align_corners),
                  .column_scale = scale_of(p.logits.width, p.out_width, p.align_corners),
                  .patch_rows = static_cast<unsigned>(rows),
                  .patch_columns = static_cast<unsigned>(columns)};
  return launch(upsample_argmax<T>, dim3(static_cast<unsigned>(rows * p.batch * columns)),
                dim3(kThreads), kSharedBytes, stream, p, plan);
}

#define TDNET_INSTANCES(T) \
  template cudaError_t launch_upsample_argmax<T>(const UpsampleArgmax<T>&, cudaStream_t);
TDNET_INSTANCES(__half)
TDNET_INSTANCES(__nv_bfloat16)
TDNET_INSTANCES(float)
#undef TDNET_INSTANCES

}  // namespace tdnet::cuda
