// What the CUDA kernels take at most, for launchers, kernels and build_info().

#pragma once

namespace tdnet::cuda {

constexpr int kMostAddends = 32;                 // maps added to one convolution
constexpr int kMostPartials = kMostAddends + 1;  // the new one is no addend

}  // namespace tdnet::cuda
