// upsample_argmax on CUDA tensors.

#include "../kernels/upsample_argmax.cuh"

#include <torch/csrc/stable/library.h>

#include "../../checks.h"
#include "../../tensors.h"
#include "device.h"
#include "launcher.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

template <class T>
void upsample_argmax_as(const Tensor& logits, bool align_corners, Tensor& labels) {
  const DeviceGuard guard(logits);
  const auto* data = static_cast<const uint8_t*>(labels.const_data_ptr());
  const bool wide = labels.scalar_type() == ScalarType::Long;
  const int64_t label_bytes = wide ? sizeof(int64_t) : sizeof(uint8_t);
  const UpsampleArgmax<T> problem{.logits = map_of<T>("logits", logits),
                                  .height = static_cast<int>(logits.size(2)),
                                  .batch = static_cast<int>(logits.size(0)),
                                  .align_corners = align_corners,
                                  .out_height = static_cast<int>(labels.size(1)),
                                  .out_width = static_cast<int>(labels.size(2)),
                                  .labels = labels.mutable_data_ptr(),
                                  .wide = wide,
                                  .vectors = whole_vectors(data, labels.size(2) * label_bytes, {})};
  check_launch(launch_upsample_argmax(problem, current_stream(logits)), "upsample_argmax");
}

Tensor upsample_argmax(const Tensor& logits, std::vector<int64_t> size, bool align_corners,
                       std::optional<ScalarType> requested) {
  const ScalarType dtype = requested.value_or(ScalarType::Byte);
  const MatrixShape shape = check_upsample_argmax(logits, size, dtype);
  if (is_double(logits)) {
    return call_operator("tdnet_reference::upsample_argmax", logits, size, align_corners,
                         requested)[0];
  }
  check_fits_int("size", size[0], "rows");
  check_fits_int("size", size[1], "columns");
  Tensor labels = new_result(logits, shape, dtype);
  if (labels.numel() == 0) return labels;
  with_element_type(logits.scalar_type(), [&]<class T>(std::type_identity<T>) {
    upsample_argmax_as<T>(logits, align_corners, labels);
  });
  return labels;
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) { m.impl("upsample_argmax", TORCH_BOX(&tdnet::cuda::upsample_argmax)); }
