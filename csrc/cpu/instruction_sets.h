// Which instruction set the vector loops of this process use.

#pragma once

namespace tdnet::cpu {

enum class InstructionSet { kGeneric, kAvx2, kAvx512 };

// The widest compiled set that this CPU runs; TDNET_CPU_ISA=generic|avx2|avx512 lowers it (for
// tests).
InstructionSet instruction_set();

const char* instruction_set_name();

// Comma-separated names of the compiled sets.
const char* compiled_instruction_sets();

}  // namespace tdnet::cpu

#if defined(__x86_64__) && defined(__GNUC__)
#define TDNET_X86 1
#else
#define TDNET_X86 0
#endif

// Picks one of the copies that for_each_instruction_set.h made of `function`.
#if TDNET_X86
#define TDNET_DISPATCH(function)                                             \
  (tdnet::cpu::instruction_set() == tdnet::cpu::InstructionSet::kAvx512      \
       ? &tdnet::cpu::avx512::function                                       \
       : (tdnet::cpu::instruction_set() == tdnet::cpu::InstructionSet::kAvx2 \
              ? &tdnet::cpu::avx2::function                                  \
              : &tdnet::cpu::generic::function))
#else
#define TDNET_DISPATCH(function) (&tdnet::cpu::generic::function)
#endif
