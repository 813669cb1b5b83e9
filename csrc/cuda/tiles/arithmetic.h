// Whole numbers, for launchers and kernels.

#pragma once

#include <type_traits>

#include "../primitives/types.h"

namespace tdnet::cuda {

// a / b, rounded up, of the type of a. An int is far enough from its largest (check_fits_int).
template <class Integer>
__host__ __device__ constexpr Integer divide_up(Integer a, std::type_identity_t<Integer> b) {
  return (a + b - 1) / b;
}

// The first multiple of b from a on.
template <class Integer>
__host__ __device__ constexpr Integer round_up(Integer a, std::type_identity_t<Integer> b) {
  return divide_up(a, b) * b;
}

}  // namespace tdnet::cuda
