// What the emulated code asks of the runtime. The functions defined here are compiled with the
// kernels, so that the sanitizers watch every access to shared and global memory; the .cpp files of
// the runtime are compiled without ThreadSanitizer.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <typeinfo>

#include "cuda_types.h"

// Of the running thread; the runtime sets them at every switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace tdnet_emulator {

struct Where {
  const char* file;
  int line;
};

// Ends the launch with an error that names the kernel, the block, the thread and `where`.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Where where, const char* format, ...);

// Of the running block; 1024-byte aligned.
unsigned char* dynamic_shared();
bool in_shared_memory(const void* first, size_t bytes);

cudaError_t launch_blocks(dim3 grid, dim3 block, size_t shared_bytes, const std::type_info& kernel,
                          const std::function<void()>& body);

template <class Body>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, const Body& body) {
  return launch_blocks(grid, block, shared_bytes, typeid(Body), body);
}

// --- barriers and warp collectives --------------------------------------------------------------

// Returns whether any thread of the block passed true.
bool block_barrier(const char* name, bool vote, Where where);

// One lane's part in a warp collective.
struct Operands {
  uint32_t in[12];
  uint32_t out[4];
};
using Lanes = Operands* [32];

struct Collective {
  const char* name;
  void (*compute)(const Lanes& lanes, unsigned mask);  // once, when all lanes of mask are there
  bool orders_memory = false;
};
extern const Collective kSyncWarp, kBallot, kLoadMatrix, kLoadMatrixTransposed;
extern const Collective kShuffle, kShuffleUp, kShuffleDown, kShuffleXor;
extern const Collective kMultiplyHalf, kMultiplyBfloat16, kMultiplyTf32;

void meet(const Collective& collective, unsigned mask, Operands& operands, Where where);

template <class T>
T shuffle(const Collective& kind, unsigned mask, T value, int argument, int width, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Operands operands{};
  std::memcpy(operands.in, &value, sizeof(T));
  operands.in[2] = static_cast<uint32_t>(argument);
  operands.in[3] = static_cast<uint32_t>(width);
  meet(kind, mask, operands, where);
  std::memcpy(&value, operands.out, sizeof(T));
  return value;
}

// --- asynchronous copies ------------------------------------------------------------------------

struct Copy {
  void* to;
  const void* from;  // null: zeros
  uint32_t bytes;
};

// Says whether the copy is to land now; else it is kept for later.
bool lands_at_once(const Copy& copy);
void copy_async_commit();
// The next copy that must have landed when all groups but the `newest` have; null at the end.
const Copy* next_landing(uint32_t newest, Where where);

inline void land(const Copy& copy) {
  for (uint32_t i = 0; i < copy.bytes; i += 4) {
    uint32_t word = 0;
    if (copy.from != nullptr) std::memcpy(&word, static_cast<const char*>(copy.from) + i, 4);
    std::memcpy(static_cast<char*>(copy.to) + i, &word, 4);
  }
}

inline void check_shared(const void* place, uint32_t bytes, const char* name, Where where) {
  if (reinterpret_cast<uintptr_t>(place) % bytes != 0) {
    fail(where, "%s: shared memory not aligned to %u bytes", name, bytes);
  }
  if (!in_shared_memory(place, bytes)) fail(where, "%s: outside of shared memory", name);
}

inline void copy_async(void* to, const void* from, uint32_t bytes, bool valid, const char* file,
                       int line) {
  check_shared(to, bytes, "cp.async", {file, line});
  if (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail({file, line}, "cp.async: global memory not aligned to %u bytes", bytes);
  }
  const Copy copy{to, valid ? from : nullptr, bytes};
  if (lands_at_once(copy)) return land(copy);
  for (uint32_t i = 0; i < bytes; i += 4) {  // NaN until it lands
    const uint32_t nan = ~0u;
    std::memcpy(static_cast<char*>(to) + i, &nan, 4);
  }
}

inline void copy_async_wait(uint32_t newest, const char* file, int line) {
  while (const Copy* copy = next_landing(newest, {file, line})) land(*copy);
}

// --- tensor cores and 16 bytes of shared memory -------------------------------------------------

// 16 bytes by two loads that the sanitizers see.
inline void read_16(void* to, const void* from) {
  const auto* words = static_cast<const uint64_t*>(from);
  const uint64_t read[2] = {words[0], words[1]};
  std::memcpy(to, read, 16);
}

inline void load_matrix_x4(uint32_t (&fragment)[4], bool transposed, const void* row,
                           const char* file, int line) {
  check_shared(row, 16, "ldmatrix", {file, line});
  Operands operands{};
  read_16(operands.in, row);
  operands.in[4] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row));
  meet(transposed ? kLoadMatrixTransposed : kLoadMatrix, ~0u, operands, {file, line});
  std::memcpy(fragment, operands.out, 16);
}

inline void multiply_add(const Collective& kind, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1, Where where) {
  Operands operands;
  std::memcpy(operands.in, a, 16);
  operands.in[4] = b0;
  operands.in[5] = b1;
  std::memcpy(operands.in + 8, d, 16);
  meet(kind, ~0u, operands, where);
  std::memcpy(d, operands.out, 16);
}
template <class T>
void multiply_add_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        const char* file, int line) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  multiply_add(std::is_same_v<T, __half> ? kMultiplyHalf : kMultiplyBfloat16, d, a, b0, b1,
               {file, line});
}
inline void multiply_add_1688_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                   const char* file, int line) {
  multiply_add(kMultiplyTf32, d, a, b0, b1, {file, line});
}

inline void store_shared_16(void* to, const uint32_t (&x)[4], const char* file, int line) {
  check_shared(to, 16, "st.shared.v4", {file, line});
  uint64_t words[2];
  std::memcpy(words, x, 16);
  static_cast<uint64_t*>(to)[0] = words[0];
  static_cast<uint64_t*>(to)[1] = words[1];
}
inline void load_shared_16(uint32_t (&x)[4], const void* from, const char* file, int line) {
  check_shared(from, 16, "ld.shared.v4", {file, line});
  read_16(x, from);
}

}  // namespace tdnet_emulator
