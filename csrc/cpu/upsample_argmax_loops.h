// The vector loops of upsample_argmax; compiled once an instruction set.

typedef float Vector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS)));
typedef int IntVector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS)));

// labels[x] = the lowest class with the largest upper[class][x] * (1 - t) + lower[class][x] * t,
// where a NaN is larger than any number (as torch.argmax). Rows are `width` apart, a multiple of
// the vector.
void best_classes(const float* upper, const float* lower, float t, int64_t classes, int64_t width,
                  int* labels) {
  constexpr int kWidth = TDNET_VECTOR_FLOATS;
  for (int64_t x = 0; x < width; x += kWidth) {
    Vector best = Vector{} - __builtin_inff();
    IntVector label{};
    for (int64_t c = 0; c < classes; ++c) {
      const Vector top = *reinterpret_cast<const Vector*>(upper + c * width + x);
      const Vector bottom = *reinterpret_cast<const Vector*>(lower + c * width + x);
      const Vector value = top * (1 - t) + bottom * t;
      const IntVector better = (value > best) | ((value != value) & (best == best));
      best = better ? value : best;
      label = better ? IntVector{} + static_cast<int>(c) : label;
    }
    *reinterpret_cast<IntVector*>(labels + x) = label;
  }
}
