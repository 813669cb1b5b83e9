// The vector loop of spatial_pool; compiled once an instruction set.

typedef float LooseVector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS), aligned(4)));

// maximum[i] = the larger of maximum[i] and row[i], where NaN is larger than any number (as in
// torch). Without a branch: on real data it would be mispredicted every other time.
void raise_maximum(const float* row, int64_t count, float* maximum) {
  int64_t i = 0;
  for (; i + TDNET_VECTOR_FLOATS <= count; i += TDNET_VECTOR_FLOATS) {
    const LooseVector value = *reinterpret_cast<const LooseVector*>(row + i);
    LooseVector& largest = *reinterpret_cast<LooseVector*>(maximum + i);
    largest = (value > largest) | (value != value) ? value : largest;
  }
  for (; i < count; ++i) {
    const bool raise = (row[i] > maximum[i]) | (row[i] != row[i]);
    maximum[i] = raise ? row[i] : maximum[i];
  }
}
