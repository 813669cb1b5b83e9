#include "instruction_sets.h"

#include <cstdlib>
#include <cstring>

namespace tdnet::cpu {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512"};

InstructionSet widest_supported() {
#if TDNET_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::kAvx2;
#endif
  return InstructionSet::kGeneric;
}

InstructionSet choose() {
  const InstructionSet widest = widest_supported();
  const char* wanted = std::getenv("TDNET_CPU_ISA");
  if (wanted == nullptr) return widest;
  for (int i = 0; i <= static_cast<int>(widest); ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<InstructionSet>(i);
  }
  return widest;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

const char* instruction_set_name() { return kNames[static_cast<int>(instruction_set())]; }

const char* compiled_instruction_sets() { return TDNET_X86 ? "generic,avx2,avx512" : "generic"; }

}  // namespace tdnet::cpu
