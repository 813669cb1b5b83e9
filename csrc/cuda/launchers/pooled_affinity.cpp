// pooled_affinity on CUDA tensors, the logits of Eq. 1.

#include "../kernels/pooled_affinity.cuh"

#include <torch/csrc/stable/library.h>

#include "../../arithmetic.h"
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
  const int64_t keys = affinity.size(2);
  T* data = static_cast<T*>(affinity.mutable_data_ptr());
  const PooledAffinity<T> problem{.queries = map_of<T>("q", q),
                                  .pixels = map_of<T>("k", k),
                                  .pixel_height = static_cast<int>(k.size(2)),
                                  .stride = static_cast<int>(stride),
                                  .subsample = subsample,
                                  .pooled_width = static_cast<int>(pooled_shape(k, stride)[3]),
                                  .keys = static_cast<int>(keys),
                                  .scale = static_cast<float>(scale),
                                  .batch = static_cast<int>(q.size(0)),
                                  .affinity = data,
                                  .vectors = whole_vectors(data, keys, {})};
  check_launch(launch_pooled_affinity(problem, allow_tf32, current_stream(q)), "pooled_affinity");
}

Tensor pooled_affinity(const Tensor& q, const Tensor& k, int64_t stride, const std::string& mode,
                       std::optional<double> scale, bool allow_tf32) {
  const MatrixShape shape = check_pooled_affinity(q, k, stride, mode);
  if (is_double(q)) {
    return call_operator("tdnet_reference::pooled_affinity", q, k, stride, mode, scale,
                         allow_tf32)[0];
  }
  Tensor affinity = new_result(q, shape, q.scalar_type());
  if (affinity.numel() == 0) return affinity;
  const double factor = scale_or_default(scale, q.size(1));
  with_element_type(q.scalar_type(), [&]<class T>(std::type_identity<T>) {
    pooled_affinity_as<T>(q, k, stride, mode == "subsample", factor, allow_tf32, affinity);
  });
  return affinity;
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) { m.impl("pooled_affinity", TORCH_BOX(&tdnet::cuda::pooled_affinity)); }
