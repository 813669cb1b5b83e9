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

// Keys or values whose channels are whole vectors and whose tokens are one row: the map's own where
// they are so already (channels_last), else copies, each with zeros beyond its channels: keys and
// values are small beside the queries.
template <class T>
class TokenHeads {
 public:
  TokenHeads(const std::string& name, const Tensor& x, int64_t count, cudaStream_t stream)
      : heads_(heads_of(map_of<T>(name, x), count)) {
    const Map<const T> map = heads_.map;
    if (map.access == Access::kVectors && map.width == map.tokens) return;
    const int64_t batch = x.size(0) * count, channels = round_up(int64_t{map.channels}, 8);
    copies_ = torch::stable::new_empty(x, std::array<int64_t, 3>{batch, map.tokens, channels});
    T* data = static_cast<T*>(copies_->mutable_data_ptr());
    check_launch(launch_pack_tokens(heads_, batch, data, channels, stream), "pack_tokens");
    heads_ = {.map = {.data = data,
                      .batch = map.tokens * channels,
                      .channel = 1,
                      .row = 0,
                      .column = channels,
                      .width = map.tokens,
                      .tokens = map.tokens,
                      .channels = static_cast<int>(channels),
                      .access = Access::kVectors}};
  }

  const Heads<const T>& heads() const { return heads_; }

 private:
  Heads<const T> heads_;
  std::optional<Tensor> copies_;
};

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
  return sizeof(T) == 2 && logits.q && logits.q->size(1) / logits.heads == 64 &&
         std::abs(logits.scale) >= kLeastScale;
}

template <class T>
void propagate_as(const Logits& logits, const Tensor& v, const Projection& projection,
                  bool allow_tf32, Tensor& out, Tensor* log_sum_exp) {
  const DeviceGuard guard(v);
  const cudaStream_t stream = current_stream(v);
  const Tensor folded = projection.weight ? fold(v, *projection.weight, allow_tf32) : v;
  const TokenHeads<T> values("v", folded, logits.heads, stream);
  std::optional<TokenHeads<T>> keys;

  Attention<T> problem{};
  problem.values = values.heads();
  if (projection.bias) problem.bias = heads_of(bias_map<T>(*projection.bias), logits.heads);
  if (projection.residual) {
    problem.residual = heads_of(map_of<T>("residual", *projection.residual), logits.heads);
  }
  problem.out = heads_of(output_map<T>(out), logits.heads);
  if (log_sum_exp) problem.log_sum_exp = log_sum_exp->mutable_data_ptr<float>();
  problem.scale = static_cast<float>(logits.scale);
  problem.batch = v.size(0) * logits.heads;
  problem.key_count = values.heads().map.tokens;
  if (logits.affinity) {
    problem.affinity = matrix_map<T>("affinity", *logits.affinity);
  } else {
    keys.emplace("k", *logits.k, logits.heads, stream);
    problem.queries = heads_of(map_of<T>("q", *logits.q), logits.heads);
    problem.keys = keys->heads();
  }

  const bool tensor_cores = fits_tensor_core_attention<T>(logits);
  const int queries = problem.out.map.tokens, channels = problem.out.map.channels;
  const auto choose_splits = tensor_cores ? tensor_core_attention_splits : propagate_splits;
  const int splits = choose_splits(problem.batch, queries, channels, problem.key_count);
  PartialStorage partial(v, splits, problem.batch * queries, channels);
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
  const auto folds = [&] {
    return logits.heads == 1 && folding_is_cheaper(queries, keys, weight->size(1), weight->size(0));
  };
  if (weight && !folds()) {
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
