// upsample_argmax: bilinear upsampling and arg max over the classes in one pass. Every thread
// widens two rows of logits at a time (all classes) and blends them into each row of labels
// between; the full-size logits never exist.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "../checks.h"
#include "dtypes.h"
#include "tile.h"

#define TDNET_LOOPS "upsample_argmax_loops.h"
#include "for_each_instruction_set.h"

namespace tdnet::cpu {
namespace {

// Where an output position reads: input[low] * (1 - t) + input[high] * t.
struct Source {
  int64_t low, high;
  float t;
};

// torch's bilinear rule along one dimension, computed in float with a fused multiply-add as torch's
// builds do.
struct Rule {
  int64_t input, output;
  bool align_corners;

  Source at(int64_t i) const {
    // As torch, no neighbour of weight zero is read: an infinity or a NaN there would spread.
    if (input == output) return {i, i, 0.0f};
    const float scale = align_corners
                            ? (output > 1 ? static_cast<float>(input - 1) / (output - 1) : 0.0f)
                            : static_cast<float>(input) / output;
    const float position =
        align_corners ? scale * i : std::max(0.0f, std::fma(scale, i + 0.5f, -0.5f));
    const int64_t low = std::min(static_cast<int64_t>(position), input - 1);
    return {low, std::min(low + 1, input - 1), std::clamp(position - low, 0.0f, 1.0f)};
  }
};

// Columns that are widened at a time, so that what a thread holds does not grow with the result.
constexpr int64_t kColumns = 4096;

// One row of logits [classes, W] -> [classes, padded], widened to these columns of the output.
void widen_row(const Tensor& logits, int64_t b, int64_t y, const std::vector<Source>& columns,
               int64_t padded, float* out) {
  const float* row = logits.const_data_ptr<float>() + b * logits.stride(0) + y * logits.stride(2);
  const int64_t step = logits.stride(3);
  for (int64_t c = 0; c < logits.size(1); ++c) {
    const float* from = row + c * logits.stride(1);
    float* to = out + c * padded;
    for (size_t x = 0; x < columns.size(); ++x) {
      const Source& source = columns[x];
      to[x] = from[source.low * step] * (1 - source.t) + from[source.high * step] * source.t;
    }
    std::fill(to + columns.size(), to + padded, 0.0f);
  }
}

template <typename Label>
void upsample_argmax_into(const Tensor& logits, bool align_corners, const Tensor& labels) {
  const int64_t classes = logits.size(1), height = labels.size(1), width = labels.size(2);
  const Rule rows{logits.size(2), height, align_corners};
  const Rule columns{logits.size(3), width, align_corners};
  const int64_t padded = round_up(std::min(width, kColumns), 16);
  const auto best_classes = TDNET_DISPATCH(best_classes);
  Label* out = labels.mutable_data_ptr<Label>();
  const int64_t lines = labels.size(0) * height;
  const int64_t tiles = divide_up(width, kColumns);
  // A thread takes lines that follow each other: they share rows of logits.
  const int64_t ranges = std::min<int64_t>(torch::stable::get_num_threads(), tiles * lines);
  const Workspace workspace{2 * classes * padded, "rows of logits as wide as the result"};
  const auto label_range = [&](int64_t begin, int64_t end, float* wide) {
    float* slots[2] = {wide, wide + classes * padded};
    int64_t held[2] = {-1, -1};  // which input row, over all batches, a slot holds
    int64_t tile = -1;           // which columns
    std::vector<Source> tile_columns;
    std::vector<int> row_labels_storage(padded + 16);
    int* row_labels = row_labels_storage.data();
    row_labels += (64 - reinterpret_cast<uintptr_t>(row_labels) % 64) % 64 / sizeof(int);
    const auto widened = [&](int64_t b, int64_t y, int64_t keep) {
      const int64_t wanted = b * logits.size(2) + y;
      if (held[0] == wanted) return 0;
      if (held[1] == wanted) return 1;
      const int slot = held[0] == keep ? 1 : 0;
      widen_row(logits, b, y, tile_columns, padded, slots[slot]);
      held[slot] = wanted;
      return slot;
    };
    for (int64_t i = begin; i < end; ++i) {
      if (i / lines != tile) {
        tile = i / lines;
        held[0] = held[1] = -1;
        tile_columns.clear();
        for (int64_t x = tile * kColumns; x < std::min(width, (tile + 1) * kColumns); ++x) {
          tile_columns.push_back(columns.at(x));
        }
      }
      const int64_t line = i % lines, b = line / height;
      const Source source = rows.at(line % height);
      const int64_t base = b * logits.size(2);
      const int upper = widened(b, source.low, base + source.high);
      const int lower = widened(b, source.high, base + source.low);
      best_classes(slots[upper], slots[lower], source.t, classes, padded, row_labels);
      Label* to = out + line * width + tile * kColumns;
      for (size_t x = 0; x < tile_columns.size(); ++x) to[x] = static_cast<Label>(row_labels[x]);
    }
  };
  for_each_tile(ranges, workspace, [&](const auto& take, float* wide) {
    for (int64_t r = take(); r >= 0; r = take()) {
      label_range(r * tiles * lines / ranges, (r + 1) * tiles * lines / ranges, wide);
    }
  });
}

Tensor upsample_argmax(const Tensor& logits, std::vector<int64_t> size, bool align_corners,
                       std::optional<ScalarType> requested) {
  const ScalarType dtype = requested.value_or(ScalarType::Byte);
  const MatrixShape shape = check_upsample_argmax(logits, size, dtype);
  if (is_double(logits)) {
    return call_operator("tdnet_reference::upsample_argmax", logits, size, align_corners,
                         requested)[0];
  }
  constexpr int64_t kMostClasses = std::numeric_limits<int>::max();  // as best_classes counts
  check(logits.size(1) <= kMostClasses, "logits: expected at most ", kMostClasses,
        " channels, got ", logits.size(1));
  const Tensor labels = new_result(logits, shape, dtype);
  if (labels.numel() == 0) return labels;
  if (dtype == ScalarType::Byte) {
    upsample_argmax_into<uint8_t>(to_float(logits), align_corners, labels);
  } else {
    upsample_argmax_into<int64_t>(to_float(logits), align_corners, labels);
  }
  return labels;
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("upsample_argmax", TORCH_BOX(&tdnet::cpu::upsample_argmax));
}
