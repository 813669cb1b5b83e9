// block_sum_reduce and block_sum_update on CUDA tensors, the dimension reduction of Sec. 3.1: a
// convolution over channel groups that are summed without ever being concatenated.

#include <torch/csrc/stable/library.h>

#include "../../checks.h"
#include "../../tensors.h"
#include "../kernels/limits.h"
#include "convolve.h"
#include "registration.h"

namespace tdnet::cuda {
namespace {

Tensor block_sum_reduce(const std::vector<Tensor>& blocks, const std::vector<Tensor>& weights,
                        const std::optional<Tensor>& bias, int64_t padding, int64_t dilation,
                        const std::string& activation, bool allow_tf32) {
  const MapShape shape =
      check_block_sum_reduce(blocks, weights, bias, padding, dilation, activation);
  const Tensor& x = blocks[0];
  if (is_double(x)) {
    return call_operator("tdnet_reference::block_sum_reduce", blocks, weights, bias, padding,
                         dilation, activation, allow_tf32)[0];
  }
  Tensor out = empty_map(x, x.scalar_type(), shape);
  convolve({.blocks = blocks,
            .weights = weights,
            .bias = bias,
            .padding = padding,
            .dilation = dilation,
            .relu = activation == "relu",
            .allow_tf32 = allow_tf32},
           out);
  return out;
}

// As on the CPU, the new partial enters the total in float32, before it is rounded to its dtype.
std::tuple<Tensor, Tensor> block_sum_update(const std::vector<Tensor>& partials, int64_t index,
                                            const Tensor& x, const Tensor& weight,
                                            const std::optional<Tensor>& bias, int64_t padding,
                                            int64_t dilation, const std::string& activation,
                                            bool allow_tf32) {
  const MapShape shape =
      check_block_sum_update(partials, index, x, weight, bias, padding, dilation, activation);
  if (is_double(x)) {
    const auto results = call_operator<2>("tdnet_reference::block_sum_update", partials, index, x,
                                          weight, bias, padding, dilation, activation, allow_tf32);
    return {results[0], results[1]};
  }
  // As tdnet_ops/operators/block_sum_update.py says before a call.
  check(partials.size() <= kMostPartials, "partials: expected at most ", kMostPartials,
        ", as many as the CUDA kernel sums, got ", partials.size());
  std::vector<Tensor> others = partials;
  others.erase(others.begin() + index);
  Tensor partial = empty_map(x, x.scalar_type(), shape);
  Tensor total = empty_map(x, x.scalar_type(), shape);
  convolve({.blocks = {x},
            .weights = {weight},
            .bias = bias,
            .addends = others,
            .place = index,
            .padding = padding,
            .dilation = dilation,
            .relu = activation == "relu",
            .allow_tf32 = allow_tf32},
           total, &partial);
  return {partial, total};
}

}  // namespace
}  // namespace tdnet::cuda

TDNET_CUDA_OPERATORS(m) {
  m.impl("block_sum_reduce", TORCH_BOX(&tdnet::cuda::block_sum_reduce));
  m.impl("block_sum_update", TORCH_BOX(&tdnet::cuda::block_sum_update));
}
