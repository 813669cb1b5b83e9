// The vector loops of the matrix-product operators; compiled once an instruction set.
//
// A panel holds kVectors vectors of columns (queries, or pixels) side by side in registers; a strip
// holds kRows rows (keys, or channels) whose values are broadcast. A product adds depth rank-1
// updates to one block of rows x columns that stays in registers:
//   AVX-512:  8 rows x 3 vectors of 16 = 24 accumulators of 32 registers
//   AVX2:     6 rows x 2 vectors of 8  = 12 accumulators of 16 registers
//   generic:  4 rows x 2 vectors of 4  =  8 accumulators of 16 registers
// Panels of fewer vectors hold what is left at the end of a map.
// No intrinsics: GCC's vector extensions serve every width.

typedef float Vector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS)));
typedef float LooseVector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS), aligned(4)));
typedef int IntVector __attribute__((vector_size(4 * TDNET_VECTOR_FLOATS)));

constexpr int kWidth = TDNET_VECTOR_FLOATS;
constexpr int kRows = kWidth == 16 ? 8 : (kWidth == 8 ? 6 : 4);
constexpr int kMostVectors = kWidth == 16 ? 3 : 2;
template <int kVectors>
constexpr int kLanes = kVectors * kWidth;

// noinline keeps the accumulators in registers: inlined into a caller GCC spills them.
template <int kVectors, bool kAccumulate>
__attribute__((noinline)) void product(int64_t depth, const float* __restrict strip,
                                       const float* __restrict panel, float* __restrict block) {
  Vector sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = kAccumulate
                      ? *reinterpret_cast<const Vector*>(block + r * kLanes<kVectors> + v * kWidth)
                      : Vector{};
    }
  }
#pragma GCC unroll 4
  for (int64_t d = 0; d < depth; ++d) {
    Vector column[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v)
      column[v] = *reinterpret_cast<const Vector*>(panel + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector broadcast = strip[r] - Vector{};
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[r][v] += broadcast * column[v];
    }
    strip += kRows;
    panel += kLanes<kVectors>;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector*>(block + r * kLanes<kVectors> + v * kWidth) = sum[r][v];
  }
}

// 2^64 exp(x) for x <= 0, relative error below 2e-7; 0 where exp(x) would round to 0 in float32,
// and for -inf; NaN stays. The factor keeps what would be subnormal normal.
static inline Vector scaled_exponential(Vector x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723212e-6f;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, here with 64 added.
  constexpr float kRound = 12582912.0f + 64.0f;
  const Vector shifted = x * kLog2e + kRound;
  const Vector n = shifted - kRound;
  const Vector f = (x - n * kLn2High) - n * kLn2Low;
  Vector p = f * (1.0f / 720) + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const IntVector exponent = reinterpret_cast<IntVector>(shifted) << 23;
  const Vector result = reinterpret_cast<Vector>(reinterpret_cast<IntVector>(p) + exponent);
  const Vector finite = x >= -104.0f ? result : Vector{};
  return x == x ? finite : x;
}

// The maximum where it is infinite, as torch.logsumexp, or NaN if the column holds one.
static float infinite_log_sum_exp(const float* column, int64_t stride, int64_t keys,
                                  float maximum) {
  for (int64_t j = 0; j < keys; ++j) {
    if (column[j * stride] != column[j * stride]) return column[j * stride];
  }
  return maximum;
}

// Softmax down the keys of one panel of logits [keys, kLanes<kVectors>], in place. An all -inf
// column and a NaN give NaN, as torch. Weights are whole before they meet the values: a sum of
// theirs overflows only where the result does. `log_sum_exp` [kLanes<kVectors>] of the logits, as
// torch.logsumexp, +inf for a column with +inf, unless null.
template <int kVectors>
void softmax_panel(float* logits, int64_t keys, float* log_sum_exp) {
  Vector* rows = reinterpret_cast<Vector*>(logits);
  Vector maximum[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    maximum[v] = rows[v];
    sum[v] = Vector{};
  }
  for (int64_t j = 1; j < keys; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      const Vector row = rows[j * kVectors + v];
      maximum[v] = row > maximum[v] ? row : maximum[v];
    }
  }
  const float* maxima = reinterpret_cast<const float*>(maximum);
  if (log_sum_exp) {  // while the logits are there
    for (int i = 0; i < kLanes<kVectors>; ++i) {
      const bool finite = maxima[i] - maxima[i] == 0;
      log_sum_exp[i] =
          finite ? 0 : infinite_log_sum_exp(logits + i, kLanes<kVectors>, keys, maxima[i]);
    }
  }
  for (int64_t j = 0; j < keys; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      const Vector e = scaled_exponential(rows[j * kVectors + v] - maximum[v]);
      rows[j * kVectors + v] = e;
      sum[v] += e;
    }
  }
  if (log_sum_exp) {
    const float* sums = reinterpret_cast<const float*>(sum);
    for (int i = 0; i < kLanes<kVectors>; ++i) {
      if (maxima[i] - maxima[i] != 0) continue;
      log_sum_exp[i] = maxima[i] + __builtin_logf(sums[i] * 0x1p-64f);
    }
  }
  for (int v = 0; v < kVectors; ++v) sum[v] = 1.0f / sum[v];
  for (int64_t j = 0; j < keys; ++j) {
    for (int v = 0; v < kVectors; ++v) rows[j * kVectors + v] *= sum[v];
  }
}

// Turns one panel of logits into weights exp(logits - log_sum_exp), and the gradients of the
// weights [keys, kLanes<kVectors>] into those of what was scaled to the logits: scale weights
// (grads - sum over keys of weights grads + shift). `log_sum_exp` and `shift` are
// [kLanes<kVectors>].
template <int kVectors>
void softmax_gradient_panel(float* logits, float* grads, int64_t keys, const float* log_sum_exp,
                            const float* shift, float scale) {
  Vector* weights = reinterpret_cast<Vector*>(logits);
  Vector* gradients = reinterpret_cast<Vector*>(grads);
  Vector rows[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    rows[v] = *reinterpret_cast<const LooseVector*>(log_sum_exp + v * kWidth);
    sum[v] = -*reinterpret_cast<const LooseVector*>(shift + v * kWidth);
  }
  for (int64_t j = 0; j < keys; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      Vector& weight = weights[j * kVectors + v];
      // Above 0 by rounding alone.
      const Vector exponent = weight - rows[v];
      weight = scaled_exponential(exponent > 0 ? Vector{} : exponent) * 0x1p-64f;
      sum[v] += weight * gradients[j * kVectors + v];
    }
  }
  for (int64_t j = 0; j < keys; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      Vector& gradient = gradients[j * kVectors + v];
      gradient = weights[j * kVectors + v] * (gradient - sum[v]) * scale;
    }
  }
}

// Stores a finished block whose tokens are adjacent in memory, a row at a time.
template <int kVectors>
static inline void store_rows(const float* block, const Epilogue& to, float floor) {
  for (int64_t r = 0; r < to.rows; ++r) {
    const float* row = block + r * kLanes<kVectors>;
    const float* residual = to.residual ? to.residual + r * to.residual_channel : nullptr;
    float* out = to.out + r * to.out_channel;
    int64_t i = 0;
    for (; i + kWidth <= to.lanes; i += kWidth) {
      Vector value = *reinterpret_cast<const Vector*>(row + i);
      if (residual) value += *reinterpret_cast<const LooseVector*>(residual + i);
      *reinterpret_cast<LooseVector*>(out + i) = value < floor ? Vector{} + floor : value;
    }
    for (; i < to.lanes; ++i) {
      const float value = row[i] + (residual ? residual[i] : 0.0f);
      out[i] = value < floor ? floor : value;
    }
  }
}

// Stores a finished block of any strides, a token at a time.
template <int kVectors, bool kWhole>
static inline void store_tokens(const float* block, const Epilogue& to, float floor) {
  const int64_t rows = kWhole ? kRows : to.rows;
  const int64_t channel = kWhole ? 1 : to.out_channel;
  const int64_t residual_channel = kWhole ? 1 : to.residual_channel;
  for (int64_t i = 0; i < to.lanes; ++i) {
    const float* residual = to.residual ? to.residual + i * to.residual_token : nullptr;
    float* out = to.out + i * to.out_token;
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) {
      const float value =
          block[r * kLanes<kVectors> + i] + (residual ? residual[r * residual_channel] : 0.0f);
      out[r * channel] = value < floor ? floor : value;
    }
  }
}

#if __has_builtin(__builtin_shufflevector)
#define TDNET_INTERLEAVES

// a0 b0 a1 b1 ... of the lower or the upper halves.
#if TDNET_VECTOR_FLOATS == 16
static inline Vector interleave_low(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline Vector interleave_high(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
#elif TDNET_VECTOR_FLOATS == 8
static inline Vector interleave_low(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline Vector interleave_high(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
static inline Vector interleave_low(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
static inline Vector interleave_high(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// Transposes: kCount vectors, read in a row as [kCount, kWidth], become [kWidth, kCount]. Each
// round of interleaving the first half with the second rotates the bits of every number's place by
// one.
template <int kCount>
static inline void transpose(Vector (&x)[kCount]) {
  Vector next[kCount];
#pragma GCC unroll 4
  for (int round = 1; round < kCount; round *= 2) {
#pragma GCC unroll 8
    for (int r = 0; r < kCount / 2; ++r) {
      next[2 * r] = interleave_low(x[r], x[r + kCount / 2]);
      next[2 * r + 1] = interleave_high(x[r], x[r + kCount / 2]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) x[r] = next[r];
  }
}
#endif

// Packs rows of adjacent numbers side by side, zeros where rows[i] is null:
// out[c * kLanes + i] = rows[i][first + c] * factor.
template <int kVectors>
void pack_rows(const float* const* rows, int64_t first, int64_t count, float factor, float* out) {
  int64_t c = 0;
#ifdef TDNET_INTERLEAVES
  for (; c + kWidth <= count; c += kWidth) {
    for (int v = 0; v < kVectors; ++v) {
      Vector square[kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        const float* row = rows[v * kWidth + r];
        square[r] =
            row ? *reinterpret_cast<const LooseVector*>(row + first + c) * factor : Vector{};
      }
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kWidth; ++r) {
        *reinterpret_cast<Vector*>(out + (c + r) * kLanes<kVectors> + v * kWidth) = square[r];
      }
    }
  }
#endif
  for (; c < count; ++c) {
    for (int i = 0; i < kLanes<kVectors>; ++i) {
      out[c * kLanes<kVectors> + i] = rows[i] ? rows[i][first + c] * factor : 0.0f;
    }
  }
}

#if TDNET_VECTOR_FLOATS == 16 && defined(TDNET_INTERLEAVES)
#define TDNET_TRANSPOSES_BLOCKS

typedef float LooseHalf __attribute__((vector_size(32), aligned(4)));

// Stores a finished block whose eight channels are adjacent in memory, sixteen tokens at a time.
template <int kVectors>
static inline void store_whole_tokens(const float* block, const Epilogue& to, float floor) {
  for (int64_t first = 0; first < to.lanes; first += kWidth) {
    Vector rows[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      rows[r] = *reinterpret_cast<const Vector*>(block + r * kLanes<kVectors> + first);
    }
    transpose(rows);
    const float* tokens = reinterpret_cast<const float*>(rows);
    const int64_t count = to.lanes - first < kWidth ? to.lanes - first : kWidth;
    for (int64_t i = 0; i < count; ++i) {
      LooseHalf value = *reinterpret_cast<const LooseHalf*>(tokens + i * kRows);
      if (to.residual) {
        value += *reinterpret_cast<const LooseHalf*>(to.residual + (first + i) * to.residual_token);
      }
      *reinterpret_cast<LooseHalf*>(to.out + (first + i) * to.out_token) =
          value < floor ? LooseHalf{} + floor : value;
    }
  }
}
#endif

// Biases and stores a block (see Epilogue).
template <int kVectors>
void finish_block(float* block, const Epilogue& to) {
  Vector* rows = reinterpret_cast<Vector*>(block);
  if (to.bias) {
    for (int r = 0; r < to.rows; ++r) {
      for (int v = 0; v < kVectors; ++v) rows[r * kVectors + v] += to.bias[r];
    }
  }
  const float floor = to.relu ? 0.0f : -__builtin_inff();
  const bool adjacent_channels =
      to.out_channel == 1 && (!to.residual || to.residual_channel == 1) && to.rows == kRows;
  if (to.out_token == 1 && (!to.residual || to.residual_token == 1)) {
    store_rows<kVectors>(block, to, floor);
  } else if (adjacent_channels) {
#ifdef TDNET_TRANSPOSES_BLOCKS
    store_whole_tokens<kVectors>(block, to, floor);
#else
    store_tokens<kVectors, true>(block, to, floor);
#endif
  } else {
    store_tokens<kVectors, false>(block, to, floor);
  }
}

// What a strip takes of kRows rows of adjacent numbers, zeros where rows[r] is null:
// out[c * kRows + r] = rows[r][c] * factor.
void pack_strip(const float* const* rows, int64_t count, float factor, float* out) {
  int64_t c = 0;
#ifdef TDNET_TRANSPOSES_BLOCKS
  for (; c + kWidth <= count; c += kWidth) {
    Vector block[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      block[r] = rows[r] ? *reinterpret_cast<const LooseVector*>(rows[r] + c) * factor : Vector{};
    }
    transpose(block);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      *reinterpret_cast<LooseVector*>(out + c * kRows + r * kWidth) = block[r];
    }
  }
#endif
  for (; c < count; ++c) {
    for (int r = 0; r < kRows; ++r) out[c * kRows + r] = rows[r] ? rows[r][c] * factor : 0.0f;
  }
}

// Copies kRows adjacent numbers of each of `count` tokens, which are `stride` apart.
void copy_strip(const float* from, int64_t stride, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    __builtin_memcpy(out + i * kRows, from + i * stride, kRows * sizeof(float));
  }
}

template <int kVectors>
TileLoops loops_of() {
  // A panel of kDepth rows stays in the first-level cache together with one strip.
  constexpr int kDepth = kWidth == 16 ? 128 : 256;
  return {.rows = kRows,
          .lanes = kLanes<kVectors>,
          .depth = kDepth,
          .product = &product<kVectors, false>,
          .product_add = &product<kVectors, true>,
          .softmax_panel = &softmax_panel<kVectors>,
          .softmax_gradient_panel = &softmax_gradient_panel<kVectors>,
          .pack_rows = &pack_rows<kVectors>,
          .pack_strip = &pack_strip,
          .copy_strip = &copy_strip,
          .finish_block = &finish_block<kVectors>};
}

// Of panels of `vectors` vectors, or of the most.
TileLoops tile_loops(int64_t vectors) {
  if (vectors <= 1) return loops_of<1>();
  return vectors == 2 ? loops_of<2>() : loops_of<kMostVectors>();
}

#undef TDNET_INTERLEAVES
#undef TDNET_TRANSPOSES_BLOCKS
