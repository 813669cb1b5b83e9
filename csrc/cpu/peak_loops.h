// The vector loop of peak.cpp; compiled once an instruction set.

typedef float LooseVector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS), aligned(4)));
typedef float Vector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS)));

// x = x / 2 + 1 / 2, `steps` times, for kPeakBlock numbers. Nothing but multiply-adds on registers,
// each waiting only for its own predecessor: as many side by side as hide their latency in every
// set and leave no register to spill.
void multiply_adds(int64_t steps, float* numbers) {
  constexpr int kWidth = TDNET_VECTOR_FLOATS;
  constexpr int kVectors = kWidth == 16 ? 24 : 12;
  static_assert(kPeakBlock % (kVectors * kWidth) == 0);
  for (int first = 0; first < kPeakBlock; first += kVectors * kWidth) {
    LooseVector* place = reinterpret_cast<LooseVector*>(numbers + first);
    Vector x[kVectors];
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; ++v) x[v] = place[v];
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
      for (int v = 0; v < kVectors; ++v) x[v] = x[v] * 0.5f + 0.5f;
    }
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; ++v) place[v] = x[v];
  }
}
