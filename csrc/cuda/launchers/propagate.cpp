#include "propagate.h"

#include <cmath>
#include <type_traits>

#include "../../folding.h"
#include "../../tensors.h"
#include "../kernels/attention_tensor_cores.cuh"
#include "../kernels/combine.cuh"
#include "../kernels/pack_tokens.cuh"
#include "../kernels/propagate.cuh"
#include "../tiles/arithmetic.h"
#include "convolve.h"
#include "device.h"
#include "launcher.h"

namespace tdnet::cuda {
namespace {

// Keys or values as a matrix [B, tokens, stride] of adjacent, aligned channels; zeros beyond them.
template <class T>
struct TokenMatrix {
  Tensor storage;
  int tokens;
  int64_t stride;

  const T* data() const { return static_cast<const T*>(storage.const_data_ptr()); }
  Map<const T> map() const {
    return {.data = data(),
            .batch = tokens * stride,
            .channel = 1,
            .row = 0,
            .column = stride,
            .width = tokens,
            .tokens = tokens,
            .channels = static_cast<int>(stride),
            .access = Access::kVectors};
  }
};

// The map itself where it is such a matrix already (channels_last), else a copy: keys and values
// are small beside the queries.
template <class T>
TokenMatrix<T> token_matrix(const std::string& name, const Tensor& x, cudaStream_t stream) {
  constexpr int64_t kMultiple = 8;
  const Map<const T> map = map_of<T>(name, x);
  const int64_t batch = x.size(0), channels = x.size(1);
  const bool whole = (x.size(3) == 1 || map.column == channels) &&
                     (x.size(2) == 1 || map.row == map.width * channels) &&
                     (batch == 1 || map.batch == map.tokens * channels);
  if (map.access == Access::kVectors && channels % kMultiple == 0 && whole) {
    return {x, map.tokens, channels};
  }
  const int64_t stride = round_up(channels, kMultiple);
  Tensor tokens = torch::stable::new_empty(x, std::array<int64_t, 3>{batch, map.tokens, stride});
  check_launch(launch_pack_tokens(map, static_cast<int>(batch),
                                  static_cast<T*>(tokens.mutable_data_ptr()), stride, stream),
               "pack_tokens");
  return {tokens, map.tokens, stride};
}

// Memory for the means of `splits` parts of the keys; none for one part.
class PartialStorage {
 public:
  PartialStorage(const Tensor& like, int splits, int64_t rows, int64_t channels)
      : splits_(splits), channel_stride_(round_up(channels, 8)) {
    if (splits == 1) return;
    means_ = numbers(like, splits * rows * channel_stride_);
    maxima_ = numbers(like, splits * rows);
    row_sums_ = numbers(like, splits * rows);
  }

  PartialSums pointers() {
    if (splits_ == 1) return {nullptr, nullptr, nullptr, 1, channel_stride_};
    return {means_.mutable_data_ptr<float>(), maxima_.mutable_data_ptr<float>(),
            row_sums_.mutable_data_ptr<float>(), splits_, channel_stride_};
  }

 private:
  static Tensor numbers(const Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, std::array<int64_t, 1>{count}, ScalarType::Float);
  }

  int splits_;
  int64_t channel_stride_;
  Tensor means_, maxima_, row_sums_;
};

// Of logits times the sign of their scale, as exponents of 2.
float log2_scale(const Logits& logits) {
  constexpr double kLog2E = 1.4426950408889634;
  return static_cast<float>(std::abs(logits.scale) * kLog2E);
}

// Every channel count, dtype and source of logits.
template <class T>
void run_general(Propagation<T>& problem, const Logits& logits, const Tensor& like, bool allow_tf32,
                 cudaStream_t stream) {
  std::optional<TokenMatrix<T>> keys;
  if (logits.affinity) {
    problem.affinity = matrix_map<T>("affinity", *logits.affinity);
  } else {
    keys = token_matrix<T>("k", *logits.k, stream);
    problem.queries = map_of<T>("q", *logits.q);
    problem.keys = keys->map();
  }
  const int64_t queries = problem.out.tokens, channels = problem.out.channels;
  const int splits = propagate_splits(problem.batch, queries, channels, problem.key_count);
  PartialStorage partial(like, splits, problem.batch * queries, channels);
  problem.partial = partial.pointers();
  check_launch(launch_propagate(problem, allow_tf32, stream), "propagate");
  if (splits == 1) return;
  check_launch(launch_combine(problem, log2_scale(logits), stream), "combine");
}

// Half precision with 64 channels of keys.
template <class T>
void run_tensor_cores(Propagation<T>& problem, const Logits& logits, const TokenMatrix<T>& values,
                      cudaStream_t stream) {
  const TokenMatrix<T> keys = token_matrix<T>("k", *logits.k, stream);
  const int64_t queries = problem.out.tokens, channels = problem.out.channels;
  const int splits =
      tensor_core_attention_splits(problem.batch, queries, channels, problem.key_count);
  PartialStorage partial(values.storage, splits, problem.batch * queries, channels);
  problem.partial = partial.pointers();
  const TensorCoreAttention<T> attention{.queries = map_of<T>("q", *logits.q),
                                         .keys = keys.data(),
                                         .values = values.data(),
                                         .value_stride = values.stride,
                                         .bias = problem.bias,
                                         .residual = problem.residual,
                                         .out = problem.out,
                                         .scale = problem.scale,
                                         .batch = problem.batch,
                                         .key_count = problem.key_count,
                                         .partial = problem.partial};
  check_launch(launch_tensor_core_attention(attention, stream), "tensor_core_attention");
  if (splits > 1) check_launch(launch_combine(problem, log2_scale(logits), stream), "combine");
}

template <class T>
Tensor propagate_as(const Logits& logits, const Tensor& layout, int64_t height, int64_t width,
                    const Tensor& v, const Projection& projection, bool allow_tf32) {
  const DeviceGuard guard(v);
  const cudaStream_t stream = current_stream(v);
  const int64_t batch = v.size(0);
  const int64_t channels = projection.weight ? projection.weight->size(0) : v.size(1);
  Tensor out = empty_map(layout, v.scalar_type(), {batch, channels, height, width});
  if (out.numel() == 0) return out;

  const Tensor folded = projection.weight ? fold(v, *projection.weight, allow_tf32) : v;
  const TokenMatrix<T> values = token_matrix<T>("v", folded, stream);
  std::optional<Tensor> bias;
  if (projection.bias) bias = torch::stable::contiguous(*projection.bias);

  Propagation<T> problem{};
  problem.values = values.map();
  if (bias) problem.bias = static_cast<const T*>(bias->const_data_ptr());
  if (projection.residual) problem.residual = map_of<T>("residual", *projection.residual);
  problem.out = output_map<T>(out);
  problem.scale = static_cast<float>(logits.scale);
  problem.batch = static_cast<int>(batch);
  problem.key_count = values.tokens;
  if constexpr (sizeof(T) == 2) {
    if (logits.q && logits.q->size(1) == 64 && std::abs(logits.scale) >= kLeastScale) {
      run_tensor_cores(problem, logits, values, stream);
      return out;
    }
  }
  run_general(problem, logits, v, allow_tf32, stream);
  return out;
}

}  // namespace

Tensor propagate_projected(const Logits& logits, const Tensor& layout, int64_t height,
                           int64_t width, const Tensor& v, const Projection& projection,
                           bool allow_tf32) {
  const int64_t queries = height * width, keys = v.size(2) * v.size(3);
  const std::optional<Tensor>& weight = projection.weight;
  if (weight && !folding_is_cheaper(queries, keys, weight->size(1), weight->size(0))) {
    const Tensor attended = propagate_projected(logits, layout, height, width, v, {}, allow_tf32);
    return project(layout, attended, *weight, projection.bias, projection.residual, allow_tf32);
  }
  switch (v.scalar_type()) {
    case ScalarType::Half:
      return propagate_as<__half>(logits, layout, height, width, v, projection, allow_tf32);
    case ScalarType::BFloat16:
      return propagate_as<__nv_bfloat16>(logits, layout, height, width, v, projection, allow_tf32);
    default:
      return propagate_as<float>(logits, layout, height, width, v, projection, allow_tf32);
  }
}

}  // namespace tdnet::cuda
