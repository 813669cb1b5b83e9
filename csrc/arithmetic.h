// Arithmetic that launchers and kernels of every device share.

#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#ifdef __CUDACC__
#define TDNET_HOST_DEVICE __host__ __device__
#else
#define TDNET_HOST_DEVICE
#endif

namespace tdnet {

// Of integers >= 0; a + b must not overflow.
template <typename A, typename B>
TDNET_HOST_DEVICE constexpr auto divide_up(A a, B b) {
  return (a + b - 1) / b;
}

template <typename A, typename B>
TDNET_HOST_DEVICE constexpr auto round_up(A a, B b) {
  return divide_up(a, b) * b;
}

// Eq. 1 divides the logits by the square root of the channels of queries and keys.
inline double scale_or_default(std::optional<double> scale, int64_t key_channels) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(key_channels)));
}

}  // namespace tdnet
