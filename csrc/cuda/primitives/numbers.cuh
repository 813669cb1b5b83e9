// Conversions between the element types and float32, and the special functions of the kernels.

#pragma once

#include "platform.cuh"

namespace tdnet::cuda {

template <class T>
struct Number;

template <>
struct Number<float> {
  static __device__ __forceinline__ float to_float(float x) { return x; }
  static __device__ __forceinline__ float from_float(float x) { return x; }
};

// pack and unpack: two numbers in a register, the first in the low half.
template <>
struct Number<__half> {
  static __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
#ifdef TDNET_EMULATOR
    return __half_as_ushort(from_float(low)) | uint32_t{__half_as_ushort(from_float(high))} << 16;
#else
    const __half2 two = __floats2half2_rn(low, high);  // one instruction
    return *reinterpret_cast<const uint32_t*>(&two);
#endif
  }
  static __device__ __forceinline__ float2 unpack(uint32_t x) {
    return make_float2(to_float(__ushort_as_half(static_cast<unsigned short>(x))),
                       to_float(__ushort_as_half(static_cast<unsigned short>(x >> 16))));
  }
};

template <>
struct Number<__nv_bfloat16> {
  static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 from_float(float x) {
    return __float2bfloat16_rn(x);
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
#ifdef TDNET_EMULATOR
    return __bfloat16_as_ushort(from_float(low)) | uint32_t{__bfloat16_as_ushort(from_float(high))}
                                                       << 16;
#else
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&two);
#endif
  }
  static __device__ __forceinline__ float2 unpack(uint32_t x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
  }
};

// The larger one; NaN wins.
__device__ __forceinline__ float maximum(float a, float b) { return b > a || b != b ? b : a; }

// 2^x to 2 units in the last place; denormal results become 0, 2^-inf is 0, NaN stays.
__device__ __forceinline__ float exp2_approximate(float x) {
#ifdef TDNET_EMULATOR
  return ::tdnet_emulator::exp2_approximate(x);
#else
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#endif
}

// The same with denormal results, at the price of some instructions.
__device__ __forceinline__ float exp2_with_denormals(float x) {
#ifdef TDNET_EMULATOR
  return ::tdnet_emulator::exp2_with_denormals(x);
#else
  float y;
  asm volatile("ex2.approx.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Keeps a value in a register where the compiler would rather compute it again at every use.
__device__ __forceinline__ uint32_t pin_register(uint32_t x) {
#ifndef TDNET_EMULATOR
  asm volatile("" : "+r"(x));
#endif
  return x;
}
template <class T>
__device__ __forceinline__ const T* pin_register(const T* x) {
#ifndef TDNET_EMULATOR
  asm volatile("" : "+l"(x));
#endif
  return x;
}

}  // namespace tdnet::cuda
