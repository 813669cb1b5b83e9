#include "convolve.h"

#include <algorithm>
#include <array>

#include "../../arithmetic.h"
#include "../../tensors.h"
#include "../kernels/convolve.cuh"
#include "device.h"
#include "launcher.h"

namespace tdnet::cuda {
namespace {

template <class T>
ConvolutionOutput<T> convolution_output(Tensor& x) {
  const Map<T> map = output_map<T>(x);
  const bool channels_last = x.stride(1) == 1;
  return {.data = map.data,
          .channel = channels_last ? 1 : map.tokens,
          .token = channels_last ? map.channels : 1,
          .channels = map.channels,
          .tokens = map.tokens,
          .width = map.width,
          .vectors = whole_vectors(map.data, channels_last ? map.channels : map.tokens, {})};
}

template <class T>
Addend<T> addend_of(const Tensor& x, const ConvolutionOutput<T>& out) {
  const Map<const T> map = map_of<T>("addend", x);
  if (out.channel == 1) return {map, map.access == Access::kVectors};
  const bool rows_adjacent = x.size(2) == 1 || map.row == map.width;
  const int64_t channel = x.size(1) == 1 ? 0 : map.channel;
  return {map, map.column == 1 && rows_adjacent &&
                   whole_vectors(map.data, map.tokens, {map.batch, channel})};
}

// Points the blocks of `problem` at the weights: at the caller's own where their channels are
// adjacent and aligned (channels_last, or 1x1), else at copies, which are returned.
template <class T>
std::vector<Tensor> set_weights(const Tensor* weights, Convolution<T>& problem,
                                cudaStream_t stream) {
  std::vector<Tensor> storage;
  WeightCopies<T> copies{};
  copies.out_channels = problem.out_channels;
  copies.kernel = problem.kernel;
  for (int i = 0; i < problem.block_count; ++i) {
    const Tensor& weight = weights[i];
    const auto stride = [&](int64_t dim) { return weight.size(dim) == 1 ? 0 : weight.stride(dim); };
    const int64_t channels = weight.size(1), taps = int64_t{problem.kernel} * problem.kernel;
    const T* data = static_cast<const T*>(weight.const_data_ptr());
    ConvolutionBlock<T>& block = problem.blocks[i];
    if (weight.stride(1) == 1 && whole_vectors(data, channels, {stride(0), stride(2), stride(3)})) {
      block.weight = data;
      block.weight_channel = stride(0);
      block.weight_row = stride(2);
      block.weight_column = stride(3);
      continue;
    }
    const int64_t padded = round_up(channels, kVector<T>);
    storage.push_back(torch::stable::new_empty(
        weight, std::array<int64_t, 3>{problem.out_channels, taps, padded}));
    T* copy = static_cast<T*>(storage.back().mutable_data_ptr());
    copies.copies[copies.count++] = {.from = data,
                                     .out_channel = stride(0),
                                     .channel = stride(1),
                                     .row = stride(2),
                                     .column = stride(3),
                                     .to = copy,
                                     .channels = static_cast<int>(channels),
                                     .padded_channels = static_cast<int>(padded)};
    block.weight = copy;
    block.weight_channel = taps * padded;
    block.weight_row = problem.kernel * padded;
    block.weight_column = padded;
  }
  if (copies.count > 0) check_launch(launch_copy_weights(copies, stream), "copy_weights");
  return storage;
}

template <class T>
void convolve_as(const ConvolutionArguments& arguments, Tensor& out, Tensor* sum) {
  const DeviceGuard guard(out);
  const cudaStream_t stream = current_stream(out);
  const std::vector<Tensor>& blocks = arguments.blocks;

  Convolution<T> problem{};
  problem.addend_count = static_cast<int>(arguments.addends.size());
  problem.place = static_cast<int>(arguments.place);
  problem.kernel = static_cast<int>(arguments.weights[0].size(2));
  problem.padding = arguments.padding;
  problem.dilation = arguments.dilation;
  problem.relu = arguments.relu;
  problem.batch = static_cast<int>(out.size(0));
  problem.out_channels = static_cast<int>(arguments.weights[0].size(0));
  problem.out = convolution_output<T>(out);
  if (sum) {
    problem.sum = convolution_output<T>(*sum);
    problem.out.vectors = problem.out.vectors && problem.sum.vectors;
  }
  if (arguments.bias) {
    problem.bias = static_cast<const T*>(arguments.bias->const_data_ptr());
    problem.bias_stride = arguments.bias->stride(0);
  }
  for (int i = 0; i < problem.addend_count; ++i) {
    problem.addends[i] = addend_of(arguments.addends[i], problem.out);
  }

  std::optional<Tensor> sums;
  for (size_t first = 0; first < blocks.size(); first += kMostBlocks) {
    problem.block_count = static_cast<int>(std::min<size_t>(kMostBlocks, blocks.size() - first));
    for (int i = 0; i < problem.block_count; ++i) {
      problem.blocks[i].x = map_of<T>("blocks", blocks[first + i]);
      problem.blocks[i].height = static_cast<int>(blocks[first + i].size(2));
    }
    const std::vector<Tensor> storage =
        set_weights(arguments.weights.data() + first, problem, stream);
    if (blocks.size() > kMostBlocks && !sums) {
      const std::array<int64_t, 1> count{convolution_sums(problem, arguments.allow_tf32)};
      sums = torch::stable::new_empty(out, count, ScalarType::Float);
    }
    problem.sums_before = first > 0 ? sums->const_data_ptr<float>() : nullptr;
    const bool last = first + kMostBlocks >= blocks.size();
    problem.sums_after = last ? nullptr : sums->mutable_data_ptr<float>();
    check_launch(launch_convolve(problem, arguments.allow_tf32, stream), "convolve");
  }
}

}  // namespace

void convolve(const ConvolutionArguments& arguments, Tensor& out, Tensor* sum) {
  if (out.numel() == 0) return;
  with_element_type(out.scalar_type(),
                    [&]<class T>(std::type_identity<T>) { convolve_as<T>(arguments, out, sum); });
}

namespace {

// phi's [d_out, d_v] as the weight of a 1x1 convolution.
Tensor as_convolution(const Tensor& weight) {
  return torch::stable::unsqueeze(torch::stable::unsqueeze(weight, 2), 3);
}

}  // namespace

Tensor fold(const Tensor& v, const Tensor& weight, bool allow_tf32) {
  const std::array<int64_t, 4> size{v.size(0), round_up(weight.size(0), 8), v.size(2), v.size(3)};
  Tensor out = torch::stable::empty(size, v.scalar_type(), std::nullopt, v.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  convolve({.blocks = {v}, .weights = {as_convolution(weight)}, .allow_tf32 = allow_tf32}, out);
  return out;
}

void project(const Tensor& x, const Projection& phi, bool allow_tf32, Tensor& out) {
  ConvolutionArguments arguments{.blocks = {x},
                                 .weights = {as_convolution(*phi.weight)},
                                 .bias = phi.bias,
                                 .allow_tf32 = allow_tf32};
  if (phi.residual) arguments.addends = {*phi.residual};
  convolve(arguments, out);
}

}  // namespace tdnet::cuda
