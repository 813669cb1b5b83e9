#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>

namespace tdnet::cpu {

// gamma_n of Eq. 3 for float32 [B, C, H, W], in the layout of x. Arguments are checked by the
// caller.
torch::stable::Tensor pool(const torch::stable::Tensor& like, const torch::stable::Tensor& x,
                           int64_t stride, const std::string& mode);

}  // namespace tdnet::cpu
