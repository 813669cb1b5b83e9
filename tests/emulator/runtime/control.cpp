// The functions that Python calls by ctypes.

#include "control.h"

#include "cuda_types.h"

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))

EMULATOR_EXPORT void tdnet_emulator_set(uint64_t seed, uint32_t copies, uint32_t most_shared,
                                        uint32_t multiprocessors, const char* dropped_file,
                                        int dropped_line) {
  tdnet_emulator::settings() = {seed,         static_cast<tdnet_emulator::CopyMode>(copies),
                                most_shared,  multiprocessors,
                                dropped_file, dropped_line};
}

// Of the last launch; empty if it went well.
EMULATOR_EXPORT const char* tdnet_emulator_error() {
  return cudaGetErrorString(cudaErrorLaunchFailure);
}

EMULATOR_EXPORT void tdnet_emulator_get_statistics(tdnet_emulator::Statistics* to) {
  *to = tdnet_emulator::counts();
}

EMULATOR_EXPORT void tdnet_emulator_reset_statistics() { tdnet_emulator::counts() = {}; }
