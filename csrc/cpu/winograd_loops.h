// The transforms of winograd_conv2d; compiled once an instruction set. Channels are adjacent in
// memory, a vector of them at a time. F(4x4, 3x3) at the points 0, 1, -1, 2, -2 and infinity
// (Lavin and Gray, CVPR 2016).

typedef float Vector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS)));
typedef float LooseVector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS), aligned(4)));

constexpr int kWidth = TDNET_VECTOR_FLOATS;

// Of some channels from `from` on; those past `count` are zero.
static inline Vector load(const float* from, int64_t count) {
  if (count >= kWidth) return *reinterpret_cast<const LooseVector*>(from);
  Vector part{};
  __builtin_memcpy(&part, from, count * sizeof(float));
  return part;
}

static inline void store(float* to, int64_t count, Vector value) {
  if (count >= kWidth) {
    *reinterpret_cast<LooseVector*>(to) = value;
  } else {
    __builtin_memcpy(to, &value, count * sizeof(float));
  }
}

// out = B^T in, both `stride` vectors apart.
static inline void transform_line(const Vector* in, int from, Vector* out, int to) {
  const Vector x0 = in[0], x1 = in[from], x2 = in[2 * from];
  const Vector x3 = in[3 * from], x4 = in[4 * from], x5 = in[5 * from];
  const Vector even = x4 - 4.0f * x2, odd = x3 - 4.0f * x1;
  const Vector wide_even = x4 - x2, wide_odd = 2.0f * (x3 - x1);
  out[0] = 4.0f * x0 - 5.0f * x2 + x4;
  out[to] = even + odd;
  out[2 * to] = even - odd;
  out[3 * to] = wide_even + wide_odd;
  out[4 * to] = wide_even - wide_odd;
  out[5 * to] = 4.0f * x1 - 5.0f * x3 + x5;
}

// out = A^T in.
static inline void restore_line(const Vector* in, int from, Vector* out, int to) {
  const Vector sum = in[from] + in[2 * from], difference = in[from] - in[2 * from];
  const Vector wide_sum = in[3 * from] + in[4 * from];
  const Vector wide_difference = in[3 * from] - in[4 * from];
  out[0] = in[0] + sum + wide_sum;
  out[to] = difference + 2.0f * wide_difference;
  out[2 * to] = sum + 4.0f * wide_sum;
  out[3 * to] = difference + 8.0f * wide_difference + in[5 * from];
}

// B^T d B of the 6x6 pixels of one tile, zeros where pixels[i] is null:
// out[position * stride + c], whole vectors of channels.
void transform_input(const float* const* pixels, int64_t channels, float* out, int64_t stride) {
  for (int64_t c = 0; c < channels; c += kWidth) {
    Vector rows[36], lines[36];
#pragma GCC unroll 36
    for (int i = 0; i < 36; ++i) {
      rows[i] = pixels[i] ? load(pixels[i] + c, channels - c) : Vector{};
    }
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) transform_line(rows + x, 6, lines + x, 6);
#pragma GCC unroll 6
    for (int y = 0; y < 6; ++y) transform_line(lines + 6 * y, 1, rows + 6 * y, 1);
#pragma GCC unroll 36
    for (int i = 0; i < 36; ++i) {
      *reinterpret_cast<LooseVector*>(out + i * stride + c) = rows[i];
    }
  }
}

// relu?(A^T m A + bias + residual) for the 4x4 pixels of one tile; pixels outside are null, as are
// a missing bias and residual. The sums m stand at sums[position * stride + c].
void restore_output(const float* sums, int64_t stride, const float* bias,
                    const float* const* residual, bool relu, int64_t channels,
                    float* const* pixels) {
  const float floor = relu ? 0.0f : -__builtin_inff();
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int64_t count = channels - c;
    Vector in[36], lines[24], out[16];
#pragma GCC unroll 36
    for (int i = 0; i < 36; ++i) in[i] = *reinterpret_cast<const Vector*>(sums + i * stride + c);
#pragma GCC unroll 6
    for (int x = 0; x < 6; ++x) restore_line(in + x, 6, lines + x, 6);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) restore_line(lines + 6 * y, 1, out + 4 * y, 1);
    const Vector offset = bias ? load(bias + c, count) : Vector{};
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (!pixels[i]) continue;
      Vector value = out[i] + offset;
      if (residual) value += load(residual[i] + c, count);
      store(pixels[i] + c, count, value < floor ? Vector{} + floor : value);
    }
  }
}
