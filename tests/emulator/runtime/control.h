// What Python sets and reads, by bindings.h.

#pragma once

#include <cstdint>
#include <string>

namespace tdnet_emulator {

enum CopyMode : uint32_t {
  kCopiesLazy,    // an asynchronous copy lands at its wait,
  kCopiesEager,   // when it is issued,
  kCopiesRandom,  // or at either, by chance
};

struct Control {
  uint64_t seed = 0;  // 0: threads and blocks in order; odd: threads change at every collective
  CopyMode copies = kCopiesLazy;
  uint32_t most_shared = 227 << 10;  // bytes of dynamic shared memory that a block may have
  uint32_t multiprocessors = 8;      // of the device: kernels split work to fill it
  // The barrier, __syncwarp or wait for copies in this place does nothing, as if it had been
  // forgotten; line 0: none.
  std::string dropped_file;
  int dropped_line = 0;
};

// Since the library was loaded or they were reset.
struct Statistics {
  uint64_t launches, blocks, barriers, collectives, matrix_products, matrix_loads, bank_conflicts,
      copies;
};

Control& settings();
Statistics& counts();

}  // namespace tdnet_emulator
