// What the CUDA kernels take at most, for launchers, kernels and build_info().

#pragma once

namespace tdnet::cuda {

constexpr int kMostAddends = 32;  // maps added to one convolution

}  // namespace tdnet::cuda
