// A sum of convolutions as one matrix product that never exists as a matrix:
//
//   sum[token, channel] = sum over blocks, taps and c of
//                         x[block][c, token + tap] weight[block][channel, tap, c]
//   out = activation(addends and sum in their order + bias)
//
// Stride 1, any padding and dilation, maps of any strides.

#pragma once

#include <cstdint>

#include "../tiles/map.h"
#include "limits.h"

namespace tdnet::cuda {

constexpr int kMostBlocks = 16;  // of one launch; more take several, see Convolution::sums_before

template <class T>
struct ConvolutionBlock {
  Map<const T> x;
  int height;
  // [C_out, row, column, channels]: channels are adjacent, every run of them is 16-byte aligned and
  // continued by zeros up to a multiple of 16 bytes.
  const T* weight;
  int64_t weight_channel, weight_row, weight_column;
};

template <class T>
struct Addend {
  Map<const T> map;
  bool vectors;  // its numbers can be taken by 16 bytes in the direction of the output's vectors
};

// A whole map, NCHW or channels_last.
template <class T>
struct ConvolutionOutput {
  T* data;                 // null: not wanted
  int64_t channel, token;  // strides; one of them is 1
  int channels, tokens, width;
  bool vectors;  // can be written by 16 bytes along the adjacent dimension

  __host__ __device__ int64_t offset(int64_t b, int64_t c, int64_t t) const {
    return b * channels * tokens + c * channel + t * token;
  }
};

template <class T>
struct Convolution {
  ConvolutionBlock<T> blocks[kMostBlocks];
  Addend<T> addends[kMostAddends];
  int block_count, addend_count;
  int place;   // of the sum among the addends, in the order of addition
  int kernel;  // 1 or 3
  int64_t padding, dilation;
  const T* bias;  // null: none
  int64_t bias_stride;
  bool relu;
  int batch;
  int out_channels;          // of the weights; the channels of `out` beyond them become zero
  ConvolutionOutput<T> out;  // the result
  ConvolutionOutput<T> sum;  // also the sum alone, laid out as `out`
  // The sums of the blocks of earlier launches, and of this one where it is not the last: as many
  // numbers as convolution_sums says, in an order of the kernel's own. Null: none.
  const float* sums_before;
  float* sums_after;
};

template <class T>
int64_t convolution_sums(const Convolution<T>& problem, bool allow_tf32);

template <class T>
cudaError_t launch_convolve(const Convolution<T>& problem, bool allow_tf32, cudaStream_t stream);

// A weight [C_out, channels, kernel, kernel] of any strides, and where it goes in the order of
// ConvolutionBlock::weight: [C_out, kernel, kernel, padded_channels].
template <class T>
struct WeightCopy {
  const T* from;
  int64_t out_channel, channel, row, column;  // strides of `from`
  T* to;
  int channels, padded_channels;
};

template <class T>
struct WeightCopies {
  WeightCopy<T> copies[kMostBlocks];
  int count, out_channels, kernel;
};

template <class T>
cudaError_t launch_copy_weights(const WeightCopies<T>& copies, cudaStream_t stream);

}  // namespace tdnet::cuda
