// Tensor cores by mma.sync, and the loads that feed them.
//
// No "memory" clobber on the loads: barriers order them, and `volatile` keeps them on their side of
// one.

#pragma once

#include <type_traits>

#include "platform.cuh"

namespace tdnet::cuda {

// Four 8 x 8 matrices of 16-bit numbers (ldmatrix): lane l gives the address of row l % 8 of matrix
// l / 8, 16-byte aligned, and gets numbers 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each; of
// column l / 4 if transposed.
template <bool kTransposed>
__device__ __forceinline__ void load_matrix_x4(uint32_t (&fragment)[4], Shared shared,
                                               uint32_t offset TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::load_matrix_x4(fragment, kTransposed, shared.pointer + offset, file, line);
#else
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared.address + offset));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared.address + offset));
  }
#endif
}

// d [16, 8] += a [16, 16] b [16, 8]; T is __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ void multiply_add_16816(float (&d)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1 TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::multiply_add_16816<T>(d, a, b0, b1, file, line);
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// d [16, 8] += a [16, 8] b [8, 8], operands by to_tf32.
__device__ __forceinline__ void multiply_add_1688_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1 TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::multiply_add_1688_tf32(d, a, b0, b1, file, line);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The nearest TF32 number (10 bits of mantissa), ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef TDNET_EMULATOR
  return ::tdnet_emulator::to_tf32(x);
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(x));
  return rounded;
#endif
}

// 16 bytes of shared memory from and to registers.
__device__ __forceinline__ void store_shared_16(Shared shared, uint32_t offset,
                                                const uint32_t (&x)[4] TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::store_shared_16(shared.pointer + offset, x, file, line);
#else
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(shared.address + offset), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3]));
#endif
}

__device__ __forceinline__ void load_shared_16(uint32_t (&x)[4], Shared shared,
                                               uint32_t offset TDNET_AND_WHERE) {
#ifdef TDNET_EMULATOR
  ::tdnet_emulator::load_shared_16(x, shared.pointer + offset, file, line);
#else
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared.address + offset));
#endif
}

}  // namespace tdnet::cuda
