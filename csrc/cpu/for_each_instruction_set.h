// Compiles the file named by TDNET_LOOPS once for every instruction set, in the namespaces
// tdnet::cpu::{generic, avx2, avx512}. The file sees TDNET_VECTOR_FLOATS, the floats in a vector
// register. Only vector loops belong there: no torch header, nothing whose inline functions the
// linker could merge with copies compiled for another instruction set.

#include "instruction_sets.h"

// clang-format off
#define TDNET_VECTOR_FLOATS 4
namespace tdnet::cpu::generic {
#include TDNET_LOOPS
}
#undef TDNET_VECTOR_FLOATS

#if TDNET_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define TDNET_VECTOR_FLOATS 8
namespace tdnet::cpu::avx2 {
#include TDNET_LOOPS
}
#undef TDNET_VECTOR_FLOATS
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512")
#endif
#define TDNET_VECTOR_FLOATS 16
namespace tdnet::cpu::avx512 {
#include TDNET_LOOPS
}
#undef TDNET_VECTOR_FLOATS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // TDNET_X86
// clang-format on
