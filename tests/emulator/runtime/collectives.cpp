// Warp collectives: what each lane gets when all lanes of the mask have brought their operands.

#include <algorithm>
#include <bit>

#include "control.h"
#include "runtime.h"

namespace tdnet_emulator {
namespace {

template <class Function>
void for_lanes(unsigned mask, Function function) {
  for (; mask != 0; mask &= mask - 1) function(std::countr_zero(mask));
}

void compute_nothing(const Lanes&, unsigned) {}

void compute_ballot(const Lanes& lanes, unsigned mask) {
  unsigned votes = 0;
  for_lanes(mask, [&](int lane) { votes |= lanes[lane]->in[0] << lane; });
  for_lanes(mask, [&](int lane) { lanes[lane]->out[0] = votes; });
}

// `source`(lane, argument, width, first lane of its group); outside of the group: the lane itself.
template <class Source>
void compute_shuffle(const Lanes& lanes, unsigned mask, Source source) {
  for_lanes(mask, [&](int lane) {
    Operands& mine = *lanes[lane];
    const int argument = static_cast<int>(mine.in[2]), width = static_cast<int>(mine.in[3]);
    const int from = source(lane, argument, width, lane & ~(width - 1));
    const bool present = mask >> from & 1;  // else undefined: NaN
    for (int i = 0; i < 2; ++i) mine.out[i] = present ? lanes[from]->in[i] : ~0u;
  });
}
void compute_shuffle_from(const Lanes& lanes, unsigned mask) {
  compute_shuffle(lanes, mask, [](int, int argument, int width, int first) {
    return first + (argument & (width - 1));
  });
}
void compute_shuffle_up(const Lanes& lanes, unsigned mask) {
  compute_shuffle(lanes, mask, [](int lane, int distance, int, int first) {
    return lane - distance < first ? lane : lane - distance;
  });
}
void compute_shuffle_down(const Lanes& lanes, unsigned mask) {
  compute_shuffle(lanes, mask, [](int lane, int distance, int width, int first) {
    return lane + distance >= first + width ? lane : lane + distance;
  });
}
void compute_shuffle_xor(const Lanes& lanes, unsigned mask) {
  compute_shuffle(lanes, mask, [](int lane, int flips, int width, int first) {
    return (lane ^ flips) >= first + width ? lane : lane ^ flips;
  });
}

// Lane 8 m + r has brought row r of matrix m.
template <bool kTransposed>
void compute_load_matrix(const Lanes& lanes, unsigned) {
  ++counts().matrix_loads;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t numbers[8][8];
    int rows_in_banks[8] = {};  // the 32 banks are 8 times 16 bytes
    for (int row = 0; row < 8; ++row) {
      const Operands& from = *lanes[8 * matrix + row];
      std::memcpy(numbers[row], from.in, 16);
      ++rows_in_banks[from.in[4] / 16 % 8];
    }
    counts().bank_conflicts += *std::max_element(rows_in_banks, rows_in_banks + 8) - 1;
    for (int lane = 0; lane < 32; ++lane) {
      const int along = lane / 4, across = lane % 4 * 2;
      const uint16_t low = kTransposed ? numbers[across][along] : numbers[along][across];
      const uint16_t high = kTransposed ? numbers[across + 1][along] : numbers[along][across + 1];
      lanes[lane]->out[matrix] = low | uint32_t{high} << 16;
    }
  }
}

// Where number i of the four of a lane's accumulator stands.
int accumulator_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
int accumulator_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// d += a b. Tensor cores add in an order and a precision of their own: nothing may depend on it.
template <int kDepth>
void multiply_add(const Lanes& lanes, const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  ++counts().matrix_products;
  float d[16][8];
  for (int row = 0; row < 16; ++row) {
    float sums[8] = {};
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    }
    std::memcpy(d[row], sums, sizeof(sums));
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const float sum = __uint_as_float(lanes[lane]->in[8 + i]) +
                        d[accumulator_row(lane, i)][accumulator_column(lane, i)];
      lanes[lane]->out[i] = __float_as_uint(sum);
    }
  }
}

template <class T, float (*to_float)(T)>
void multiply_16_bits(const Lanes& lanes) {
  T a_bits[16][16], b_bits[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* const in = lanes[lane]->in;
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&a_bits[group + i % 2 * 8][pair + i / 2 * 8], &in[i], 4);
    }
    for (int i = 0; i < 2; ++i) {
      std::memcpy(&b_bits[pair + i * 8][group], &in[4 + i], 2);
      b_bits[pair + i * 8 + 1][group] = {static_cast<uint16_t>(in[4 + i] >> 16)};
    }
  }
  float a[16][16], b[16][8];
  for (int i = 0; i < 256; ++i) a[i / 16][i % 16] = to_float(a_bits[i / 16][i % 16]);
  for (int i = 0; i < 128; ++i) b[i / 8][i % 8] = to_float(b_bits[i / 8][i % 8]);
  multiply_add<16>(lanes, a, b);
}
void compute_multiply_half(const Lanes& lanes, unsigned) {
  multiply_16_bits<__half, __half2float>(lanes);
}
void compute_multiply_bfloat16(const Lanes& lanes, unsigned) {
  multiply_16_bits<__nv_bfloat16, __bfloat162float>(lanes);
}

// The 13 low bits of an operand are ignored.
void compute_multiply_tf32(const Lanes& lanes, unsigned) {
  const auto to_float = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000u); };
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* const in = lanes[lane]->in;
    const int group = lane / 4, k = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][k + i / 2 * 4] = to_float(in[i]);
    for (int i = 0; i < 2; ++i) b[k + i * 4][group] = to_float(in[4 + i]);
  }
  multiply_add<8>(lanes, a, b);
}

}  // namespace

const Collective kSyncWarp{"__syncwarp", compute_nothing, true};
const Collective kBallot{"__ballot_sync", compute_ballot};
const Collective kShuffle{"__shfl_sync", compute_shuffle_from};
const Collective kShuffleUp{"__shfl_up_sync", compute_shuffle_up};
const Collective kShuffleDown{"__shfl_down_sync", compute_shuffle_down};
const Collective kShuffleXor{"__shfl_xor_sync", compute_shuffle_xor};
const Collective kLoadMatrix{"ldmatrix", compute_load_matrix<false>};
const Collective kLoadMatrixTransposed{"ldmatrix.trans", compute_load_matrix<true>};
const Collective kMultiplyHalf{"mma.m16n8k16.f16", compute_multiply_half};
const Collective kMultiplyBfloat16{"mma.m16n8k16.bf16", compute_multiply_bfloat16};
const Collective kMultiplyTf32{"mma.m16n8k8.tf32", compute_multiply_tf32};

}  // namespace tdnet_emulator
