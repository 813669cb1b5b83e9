// Packing and blocking around the vector loops of tile_loops.h, shared by the matrix-product
// operators.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "../arithmetic.h"

namespace tdnet::cpu {

// How the rows of a block are finished: out = relu?(block + bias + residual).
struct Epilogue {
  const float* bias;      // [rows] or null
  const float* residual;  // like out, or null
  int64_t residual_channel, residual_token;
  float* out;
  int64_t out_channel, out_token;
  int64_t rows, lanes;  // the valid part of the block
  bool relu;
};

constexpr int kMostLanes = 64;

// One instruction set's loops. Panels are [depth, lanes], strips are [depth, rows], blocks are
// [rows, lanes]; lanes <= kMostLanes.
struct TileLoops {
  int rows;
  int lanes;
  int depth;  // rows of a panel that one product should take at most
  void (*product)(int64_t depth, const float* strip, const float* panel, float* block);
  void (*product_add)(int64_t depth, const float* strip, const float* panel, float* block);
  void (*softmax_panel)(float* logits, int64_t keys, float* log_sum_exp);
  void (*softmax_gradient_panel)(float* logits, float* grads, int64_t keys,
                                 const float* log_sum_exp, const float* shift, float scale);
  void (*pack_rows)(const float* const* rows, int64_t first, int64_t count, float factor,
                    float* out);
  void (*pack_strip)(const float* const* rows, int64_t count, float factor, float* out);
  void (*copy_strip)(const float* from, int64_t stride, int64_t count, float* out);
  void (*finish_block)(float* block, const Epilogue& epilogue);
};

// The narrowest panels that hold so many tokens, of the same rows and depth as all; by default, and
// where none does, the widest.
const TileLoops& tile_loops(int64_t tokens = kMostLanes);

// Uninitialised floats on a cache line, for `what`.
class Buffer {
 public:
  Buffer(int64_t count, const char* what)
      : data_(static_cast<float*>(
            ::operator new(sizeof(float) * count, std::align_val_t{64}, std::nothrow))) {
    if (data_ == nullptr) {
      throw std::runtime_error(std::string("out of memory: cannot allocate ") + what + ", " +
                               std::to_string(sizeof(float) * count) + " bytes");
    }
  }
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

// A feature map [B, heads * C, H, W] read as tokens [B * heads, C, H * W].
struct Tokens {
  const float* data;
  int64_t batch, channel, token;  // strides
  int64_t heads = 1, head = 0;    // how many, and the stride of one

  const float* at(int64_t b, int64_t c, int64_t n) const {
    return data + b / heads * batch + b % heads * head + c * channel + n * token;
  }
};

// `map` is replaced by a contiguous copy where its pixels are not evenly spaced (a spatial slice).
Tokens tokens(torch::stable::Tensor& map, int64_t heads = 1);

// A whole map of results [B, heads * C, H, W], NCHW or channels_last, as tokens [B * heads, C,
// H * W], whose finished blocks are relu?(block + bias + residual).
class Output {
 public:
  Output(const torch::stable::Tensor& map, const std::optional<torch::stable::Tensor>& bias,
         const std::optional<torch::stable::Tensor>& residual, bool relu, int64_t heads = 1);

  // Of the block whose first row is `channel` and whose first lane is `token`.
  Epilogue epilogue(int64_t b, int64_t channel, int64_t token) const;

 private:
  std::optional<torch::stable::Tensor> bias_, residual_;
  float* data_;
  int64_t batch_, channel_, token_, heads_, channels_, count_;
  std::optional<Tokens> residual_tokens_;
  bool relu_;
};

// Some panels of tokens, the last one as narrow as what is left of them.
struct Tile {
  int64_t b, first, count, panels;  // tokens first .. first+count-1 of batch b
  const TileLoops* last;

  Tile(int64_t b, int64_t first, int64_t tokens, int64_t most_panels)
      : b(b), first(first), count(std::min(tokens - first, most_panels * tile_loops().lanes)) {
    panels = divide_up(count, int64_t{tile_loops().lanes});
    last = &tile_loops(count - (panels - 1) * tile_loops().lanes);
  }
  const TileLoops& loops(int64_t panel) const { return panel == panels - 1 ? *last : tile_loops(); }
  int64_t token(int64_t panel) const { return first + panel * tile_loops().lanes; }
  // Of a panel that hold a token.
  int64_t lanes(int64_t panel) const {
    return std::min<int64_t>(loops(panel).lanes, first + count - token(panel));
  }
};

// Some strips of channels.
struct Strips {
  int64_t first, end;
};

// Stores a tile's sums [panels][strips][rows, lanes].
void finish_tile(const Output& output, const Strips& strips, const Tile& tile, float* sums);

// out[c * width + i] = source(first + i, c) * factor, zero from token `end` on: `width` tokens side
// by side.
void pack_tokens(const Tokens& source, int64_t b, int64_t first, int64_t end, int64_t channels,
                 int width, float factor, float* out);

// out[i * width + r] = source(first_token + i, first_channel + r), zero from `end_channel` on.
void pack_channels(const Tokens& source, int64_t b, int64_t first_token, int64_t token_count,
                   int64_t first_channel, int64_t end_channel, int width, float* out);

// Floats that every thread needs, and for what.
struct Workspace {
  int64_t floats;
  const char* what;
};

// Runs work(take, floats) on every thread of torch's pool; take() hands out 0 .. count-1, then -1.
// Threads that the machine slows down simply take fewer. The workspaces are allocated here: an
// error in a thread would reach the caller without its text.
template <typename Work>
void for_each_tile(int64_t count, const Workspace& workspace, const Work& work) {
  if (count == 0) return;
  std::atomic<int64_t> next{0};
  const auto take = [&]() -> int64_t {
    const int64_t tile = next.fetch_add(1, std::memory_order_relaxed);
    return tile < count ? tile : -1;
  };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), count);
  const int64_t floats = round_up(workspace.floats, 16);
  const Buffer all(threads * floats, workspace.what);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) work(take, all.get() + t * floats);
  });
}

template <typename Work>
void for_each_tile(int64_t count, const Work& work) {
  for_each_tile(count, {0, "nothing"}, [&](const auto& take, float*) { work(take); });
}

}  // namespace tdnet::cpu
