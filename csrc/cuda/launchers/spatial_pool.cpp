// spatial_pool on CUDA tensors, gamma_n of Eq. 3.

#include "../kernels/spatial_pool.cuh"

#include <torch/csrc/stable/library.h>

#include "../../checks.h"
#include "../../tensors.h"
#include "device.h"
#include "launcher.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

template <class T>
void spatial_pool_as(const Tensor& x, int64_t stride, bool subsample, Tensor& out) {
  const DeviceGuard guard(x);
  const SpatialPool<T> problem{.x = map_of<T>("x", x),
                               .height = static_cast<int>(x.size(2)),
                               .out = output_map<T>(out),
                               .stride = static_cast<int>(stride),
                               .subsample = subsample,
                               .batch = static_cast<int>(x.size(0))};
  check_launch(launch_spatial_pool(problem, current_stream(x)), "spatial_pool");
}

Tensor spatial_pool(const Tensor& x, int64_t stride, const std::string& mode) {
  const MapShape shape = check_spatial_pool(x, stride, mode);
  if (is_double(x)) return call_operator("tdnet_reference::spatial_pool", x, stride, mode)[0];
  Tensor out = empty_map(x, x.scalar_type(), shape);
  if (out.numel() == 0) return out;
  with_element_type(x.scalar_type(), [&]<class T>(std::type_identity<T>) {
    spatial_pool_as<T>(x, stride, mode == "subsample", out);
  });
  return out;
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) { m.impl("spatial_pool", TORCH_BOX(&tdnet::cuda::spatial_pool)); }
