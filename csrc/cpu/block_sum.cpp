// block_sum_reduce and block_sum_update, the dimension reduction of Sec. 3.1: a convolution over
// channel groups that are summed without ever being concatenated.

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "convolve.h"
#include "dtypes.h"
#include "tile.h"

namespace tdnet::cpu {
namespace {

Tensor block_sum_reduce(const std::vector<Tensor>& blocks, const std::vector<Tensor>& weights,
                        const std::optional<Tensor>& bias, int64_t padding, int64_t dilation,
                        const std::string& activation, bool allow_tf32) {
  const MapShape shape =
      check_block_sum_reduce(blocks, weights, bias, padding, dilation, activation);
  if (is_double(blocks[0])) {
    return call_operator("tdnet_reference::block_sum_reduce", blocks, weights, bias, padding,
                         dilation, activation, allow_tf32)[0];
  }
  const Tensor out = convolve_blocks(
      blocks[0], shape, to_float(blocks), to_float(weights), to_float(bias), std::nullopt,
      {.padding = padding, .dilation = dilation, .relu = activation == "relu"});
  return from_float(out, blocks[0].scalar_type());
}

// act(sum of partials + bias) in the order of the list. All have the layout of `out`: rows of
// adjacent channels (channels_last) or of the pixels of one channel.
void sum_partials(const std::vector<const float*>& partials, const float* bias, bool relu,
                  const Tensor& out) {
  const int64_t channels = out.size(1), pixels = out.size(2) * out.size(3);
  const bool channels_last = out.stride(1) == 1;
  const int64_t row_size = channels_last ? channels : pixels;
  float* data = out.mutable_data_ptr<float>();
  const auto sum_row = [&](int64_t row) {
    float* to = data + row * row_size;
    std::copy_n(partials[0] + row * row_size, row_size, to);
    for (size_t p = 1; p < partials.size(); ++p) {
      const float* from = partials[p] + row * row_size;
      for (int64_t i = 0; i < row_size; ++i) to[i] += from[i];
    }
    if (bias && channels_last) {
      for (int64_t i = 0; i < row_size; ++i) to[i] += bias[i];
    } else if (bias) {
      for (int64_t i = 0; i < row_size; ++i) to[i] += bias[row % channels];
    }
    if (relu) {
      for (int64_t i = 0; i < row_size; ++i) to[i] = to[i] < 0 ? 0 : to[i];
    }
  };
  const int64_t rows = out.size(0) * (channels_last ? pixels : channels);
  torch::stable::parallel_for(0, rows, divide_up(1 << 14, row_size),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t row = begin; row < end; ++row) sum_row(row);
                              });
}

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
  const Tensor partial = convolve_blocks(x, shape, {to_float(x)}, {to_float(weight)}, std::nullopt,
                                         std::nullopt, {.padding = padding, .dilation = dilation});
  const bool channels_last = x.stride(1) == 1;
  std::vector<Tensor> aligned;
  std::vector<const float*> data;
  for (int64_t i = 0; i < static_cast<int64_t>(partials.size()); ++i) {
    aligned.push_back(i == index
                          ? partial
                          : torch::stable::contiguous(
                                to_float(partials[i]),
                                channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                              : torch::headeronly::MemoryFormat::Contiguous));
    data.push_back(aligned.back().const_data_ptr<float>());
  }
  std::optional<Tensor> bias_float;
  if (bias) bias_float = torch::stable::contiguous(to_float(*bias));
  const Tensor total = torch::stable::empty_like(partial);
  sum_partials(data, bias_float ? bias_float->const_data_ptr<float>() : nullptr,
               activation == "relu", total);
  return {from_float(partial, x.scalar_type()), from_float(total, x.scalar_type())};
}

}  // namespace
}  // namespace tdnet::cpu

STABLE_TORCH_LIBRARY_IMPL(TDNET_NAME_SPACE, CPU, m) {
  m.impl("block_sum_reduce", TORCH_BOX(&tdnet::cpu::block_sum_reduce));
  m.impl("block_sum_update", TORCH_BOX(&tdnet::cpu::block_sum_update));
}
