#include "propagate.h"

#include <cmath>

#include "../../arithmetic.h"
#include "../../folding.h"
#include "../../tensors.h"
#include "../kernels/attention_tensor_cores.cuh"
#include "../kernels/combine.cuh"
#include "../kernels/pack_tokens.cuh"
#include "../kernels/propagate.cuh"
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

// Half precision, 64 channels of keys, and a scale that leaves room for what the kernel adds.
template <class T>
bool fits_tensor_core_attention(const Logits& logits) {
  return sizeof(T) == 2 && logits.q && logits.q->size(1) == 64 &&
         std::abs(logits.scale) >= kLeastScale;
}

template <class T>
void propagate_as(const Logits& logits, const Tensor& v, const Projection& projection,
                  bool allow_tf32, Tensor& out, Tensor* log_sum_exp) {
  const DeviceGuard guard(v);
  const cudaStream_t stream = current_stream(v);
  const Tensor folded = projection.weight ? fold(v, *projection.weight, allow_tf32) : v;
  const TokenMatrix<T> values = token_matrix<T>("v", folded, stream);
  std::optional<TokenMatrix<T>> keys;
  std::optional<Tensor> bias;
  if (projection.bias) bias = torch::stable::contiguous(*projection.bias);

  Attention<T> problem{};
  problem.values = values.map();
  if (bias) problem.bias = static_cast<const T*>(bias->const_data_ptr());
  if (projection.residual) problem.residual = map_of<T>("residual", *projection.residual);
  problem.out = output_map<T>(out);
  if (log_sum_exp) problem.log_sum_exp = log_sum_exp->mutable_data_ptr<float>();
  problem.scale = static_cast<float>(logits.scale);
  problem.batch = static_cast<int>(v.size(0));
  problem.key_count = values.tokens;
  if (logits.affinity) {
    problem.affinity = matrix_map<T>("affinity", *logits.affinity);
  } else {
    keys = token_matrix<T>("k", *logits.k, stream);
    problem.queries = map_of<T>("q", *logits.q);
    problem.keys = keys->map();
  }

  const bool tensor_cores = fits_tensor_core_attention<T>(logits);
  const int queries = problem.out.tokens, channels = problem.out.channels;
  const auto choose_splits = tensor_cores ? tensor_core_attention_splits : propagate_splits;
  const int splits = choose_splits(problem.batch, queries, channels, problem.key_count);
  PartialStorage partial(v, splits, int64_t{problem.batch} * queries, channels);
  problem.partial = partial.pointers();
  if constexpr (sizeof(T) == 2) {
    if (tensor_cores) {
      check_launch(launch_tensor_core_attention(problem, stream), "tensor_core_attention");
    }
  }
  if (!tensor_cores) check_launch(launch_propagate(problem, allow_tf32, stream), "propagate");
  if (splits > 1) check_launch(launch_combine(problem, log2_scale(logits), stream), "combine");
}

}  // namespace

void propagate(const Logits& logits, const Tensor& v, const Projection& projection, bool allow_tf32,
               Tensor& out, Tensor* log_sum_exp) {
  if (out.numel() == 0) return;
  const int64_t queries = out.size(2) * out.size(3), keys = v.size(2) * v.size(3);
  const std::optional<Tensor>& weight = projection.weight;
  if (weight && !folding_is_cheaper(queries, keys, weight->size(1), weight->size(0))) {
    Tensor attended =
        empty_map(out, v.scalar_type(), {v.size(0), v.size(1), out.size(2), out.size(3)});
    propagate(logits, v, {}, allow_tf32, attended, log_sum_exp);
    return project(attended, projection, allow_tf32, out);
  }
  with_element_type(v.scalar_type(), [&]<class T>(std::type_identity<T>) {
    propagate_as<T>(logits, v, projection, allow_tf32, out, log_sum_exp);
  });
}

}  // namespace tdnet::cuda
