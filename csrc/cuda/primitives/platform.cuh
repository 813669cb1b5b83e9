// What kernels and their launches need of the machine. nvcc compiles for a GPU; the emulator of
// tests/emulator, which defines TDNET_EMULATOR and includes its emulator.h before anything else,
// executes the same source on a CPU, one fiber a thread. Only the files of this folder,
// launchers/device.h and launchers/registration.h tell the two apart.

#pragma once

#include "types.h"

// Trailing parameters that carry the caller's file and line into the emulator's messages.
#ifdef TDNET_EMULATOR
#define TDNET_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define TDNET_AND_WHERE , TDNET_WHERE
#else
#define TDNET_WHERE
#define TDNET_AND_WHERE
#endif

// The block's dynamic shared memory as `unsigned char* name`.
#ifdef TDNET_EMULATOR
#define TDNET_DYNAMIC_SHARED(name) unsigned char* const name = ::tdnet_emulator::dynamic_shared()
#else
#define TDNET_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace tdnet::cuda {

// A place in shared memory: a pointer on the CPU, a 32-bit address on a GPU, so that an offset
// added to it becomes an immediate of the instruction.
struct Shared {
#ifdef TDNET_EMULATOR
  unsigned char* pointer;
#else
  uint32_t address;
#endif
};

__device__ __forceinline__ Shared shared_at(const void* pointer) {
#ifdef TDNET_EMULATOR
  return {const_cast<unsigned char*>(static_cast<const unsigned char*>(pointer))};
#else
  return {static_cast<uint32_t>(__cvta_generic_to_shared(pointer))};
#endif
}

// Launches a kernel on a stream. More than 48 KB of dynamic shared memory are asked for explicitly.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
#ifdef TDNET_EMULATOR
  (void)stream;
  return ::tdnet_emulator::launch(grid, block, shared_bytes, [=] { kernel(arguments...); });
#else
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      (void)cudaGetLastError();  // Else the next launch would report it too.
      return error;
    }
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
#endif
}

}  // namespace tdnet::cuda
