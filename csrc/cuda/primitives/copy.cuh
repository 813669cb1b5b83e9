// Asynchronous copies from global to shared memory (cp.async). What a thread has committed lands at
// its wait; other threads see it after the barrier that follows.

#pragma once

#include "platform.cuh"

namespace tdnet::cuda {

// 16 bytes, both places aligned to 16; zeros where not `valid`, and `global` is not read.
template <int kSharedOffset = 0, int kGlobalOffset = 0>
__device__ __forceinline__ void copy_async_16(Shared shared, uint32_t offset, const void* global,
                                              bool valid TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::copy_async(shared.pointer + offset + kSharedOffset,
                               static_cast<const char*>(global) + (valid ? kGlobalOffset : 0), 16,
                               valid, file, line);
#else
  // "n" operands: ptxas does not fold a 64-bit addition into cp.async by itself.
  asm volatile("cp.async.cg.shared.global.L2::128B [%0+%2], [%1+%3], 16, %4;\n" ::"r"(
                   shared.address + offset),
               "l"(global), "n"(kSharedOffset), "n"(kGlobalOffset), "r"(valid ? 16 : 0)
               : "memory");
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::copy_async_commit();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits for all of this thread's groups but the newest kNewest.
template <int kNewest>
__device__ __forceinline__ void copy_async_wait(TDNET_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::copy_async_wait(kNewest, file, line);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kNewest) : "memory");
#endif
}

__device__ __forceinline__ void prefetch_l2(const void* global) {
#ifdef TDNET_EMULATOR
  (void)*static_cast<const volatile unsigned char*>(global);  // AddressSanitizer sees the address.
#else
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
#endif
}

}  // namespace tdnet::cuda
