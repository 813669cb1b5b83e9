// pooled_affinity on CUDA tensors, the logits of Eq. 1.

#include "../kernels/pooled_affinity.cuh"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../../checks.h"
#include "../../tensors.h"
#include "device.h"
#include "launcher.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

template <class T>
void pooled_affinity_as(const Tensor& q, const Tensor& k, int64_t stride, bool subsample,
                        double scale, bool allow_tf32, Tensor& affinity) {
  const DeviceGuard guard(q);
  const auto pooled = [&](int64_t size) { return (size - 1) / stride + 1; };
  const int64_t keys = pooled(k.size(2)) * pooled(k.size(3));
  T* data = static_cast<T*>(affinity.mutable_data_ptr());
  const PooledAffinity<T> problem{.queries = map_of<T>("q", q),
                                  .pixels = map_of<T>("k", k),
                                  .pixel_height = static_cast<int>(k.size(2)),
                                  .stride = static_cast<int>(stride),
                                  .subsample = subsample,
                                  .pooled_width = static_cast<int>(pooled(k.size(3))),
                                  .keys = static_cast<int>(keys),
                                  .scale = static_cast<float>(scale),
                                  .batch = static_cast<int>(q.size(0)),
                                  .affinity = data,
                                  .vectors = whole_vectors(data, keys, {})};
  check_launch(launch_pooled_affinity(problem, allow_tf32, current_stream(q)), "pooled_affinity");
}

Tensor pooled_affinity(const Tensor& q, const Tensor& k, int64_t stride, const std::string& mode,
                       std::optional<double> scale, bool allow_tf32) {
  check_pooled_affinity(q, k, stride, mode);
  if (is_double(q)) {
    return call_operator("tdnet_reference::pooled_affinity", q, k, stride, mode, scale,
                         allow_tf32)[0];
  }
  const int64_t keys = ((k.size(2) - 1) / stride + 1) * ((k.size(3) - 1) / stride + 1);
  Tensor affinity =
      torch::stable::new_empty(q, std::array<int64_t, 3>{q.size(0), q.size(2) * q.size(3), keys});
  if (affinity.numel() == 0) return affinity;
  const bool subsample = mode == "subsample";
  const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(1))));
  switch (q.scalar_type()) {
    case ScalarType::Half:
      pooled_affinity_as<__half>(q, k, stride, subsample, factor, allow_tf32, affinity);
      break;
    case ScalarType::BFloat16:
      pooled_affinity_as<__nv_bfloat16>(q, k, stride, subsample, factor, allow_tf32, affinity);
      break;
    default:
      pooled_affinity_as<float>(q, k, stride, subsample, factor, allow_tf32, affinity);
  }
  return affinity;
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) { m.impl("pooled_affinity", TORCH_BOX(&tdnet::cuda::pooled_affinity)); }
