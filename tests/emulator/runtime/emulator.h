// Force-included before every emulated source: CUDA's functions by their own names, and those that
// csrc/cuda/primitives calls.

#pragma once

#include <algorithm>
#include <cmath>

#include "runtime.h"

#define EMULATOR_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_WHERE) {
  tdnet_emulator::block_barrier("__syncthreads", false, {file, line});
}
inline int __syncthreads_or(int vote, EMULATOR_WHERE) {
  return tdnet_emulator::block_barrier("__syncthreads_or", vote != 0, {file, line});
}
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_WHERE) {
  tdnet_emulator::Operands none;
  tdnet_emulator::meet(tdnet_emulator::kSyncWarp, mask, none, {file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T x, int lane, int width = 32, EMULATOR_WHERE) {
  return tdnet_emulator::shuffle(tdnet_emulator::kShuffle, mask, x, lane, width, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned distance, int width = 32, EMULATOR_WHERE) {
  return tdnet_emulator::shuffle(tdnet_emulator::kShuffleUp, mask, x, static_cast<int>(distance),
                                 width, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned distance, int width = 32, EMULATOR_WHERE) {
  return tdnet_emulator::shuffle(tdnet_emulator::kShuffleDown, mask, x, static_cast<int>(distance),
                                 width, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int distance, int width = 32, EMULATOR_WHERE) {
  return tdnet_emulator::shuffle(tdnet_emulator::kShuffleXor, mask, x, distance, width,
                                 {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMULATOR_WHERE) {
  tdnet_emulator::Operands operands{};
  operands.in[0] = vote != 0;
  tdnet_emulator::meet(tdnet_emulator::kBallot, mask, operands, {file, line});
  return operands.out[0];
}
inline int __any_sync(unsigned mask, int vote, EMULATOR_WHERE) {
  return __ballot_sync(mask, vote, file, line) != 0;
}
inline int __all_sync(unsigned mask, int vote, EMULATOR_WHERE) {
  return __ballot_sync(mask, !vote, file, line) == 0;
}

namespace tdnet_emulator {
// Relaxed: it orders no other access.
template <class T, class Update>
T atomic_update(T* place, Update update) {
  T before, after;
  __atomic_load(place, &before, __ATOMIC_RELAXED);
  do {
    after = update(before);
  } while (
      !__atomic_compare_exchange(place, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
}  // namespace tdnet_emulator

template <class T>
T atomicAdd(T* place, std::type_identity_t<T> x) {
  return tdnet_emulator::atomic_update(place, [&](T old) { return static_cast<T>(old + x); });
}
template <class T>
T atomicMax(T* place, std::type_identity_t<T> x) {
  return tdnet_emulator::atomic_update(place, [&](T old) { return std::max(old, x); });
}
template <class T>
T atomicMin(T* place, std::type_identity_t<T> x) {
  return tdnet_emulator::atomic_update(place, [&](T old) { return std::min(old, x); });
}

inline float __frcp_rn(float x) { return 1.f / x; }
inline int min(int a, int b) { return std::min(a, b); }
inline int max(int a, int b) { return std::max(a, b); }
inline unsigned min(unsigned a, unsigned b) { return std::min(a, b); }
inline unsigned max(unsigned a, unsigned b) { return std::max(a, b); }
inline int64_t min(int64_t a, int64_t b) { return std::min(a, b); }
inline int64_t max(int64_t a, int64_t b) { return std::max(a, b); }

namespace tdnet_emulator {

// The nearest TF32 number, ties away from zero, as cvt.rna.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits + 0x1000u) & 0xffffe000u;
}

inline float exp2_with_denormals(float x) { return std::exp2(x); }

// Denormal results are 0 (.ftz); as arguments they would give 1 either way.
inline float exp2_approximate(float x) {
  const float y = exp2_with_denormals(x);
  return y < 0x1p-126f ? 0.f : y;
}

}  // namespace tdnet_emulator
