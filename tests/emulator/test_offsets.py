"""The kernels' offsets at sizes that no machine holds: host code, no kernel runs."""

from __future__ import annotations

import random
import shlex
import subprocess
from pathlib import Path

import emulator
import pytest

PROGRAM = r"""
#include <cstdio>
#include <cstring>

#include "cuda/kernels/convolve.cuh"
#include "cuda/tiles/map.h"
#include "cuda/kernels/pooled_affinity.cuh"
#include "cuda/kernels/attention.cuh"
#include "cuda/kernels/upsample_argmax.cuh"

using namespace tdnet::cuda;

char* const kFirst = reinterpret_cast<char*>(4096);  // of maps of bytes

// Where a map begins.
long long start(const Map<char>& map) { return map.data - kFirst; }

// Reads lines of a name and numbers, prints what the function of that name makes of them.
int main() {
  char name[32];
  long long x[8];
  while (std::scanf("%31s", name) == 1) {
    for (long long& number : x) {
      if (std::scanf("%lld", &number) != 1) return 1;
    }
    if (std::strcmp(name, "labels") == 0) {
      UpsampleArgmax<float> problem{};
      problem.out_height = int(x[3]);
      problem.out_width = int(x[4]);
      std::printf("%lld\n", (long long)problem.label_offset(x[0], x[1], x[2]));
    } else if (std::strcmp(name, "affinity") == 0) {
      PooledAffinity<float> problem{};
      problem.queries.tokens = int(x[3]);
      problem.keys = int(x[4]);
      std::printf("%lld\n", (long long)problem.offset(x[0], x[1], x[2]));
    } else if (std::strcmp(name, "map") == 0) {
      Map<char> map{};
      map.data = kFirst, map.batch = x[0], map.channel = x[1], map.row = x[2], map.column = x[3];
      map.width = int(x[4]);
      std::printf("%lld\n", start(map.at(x[5])) + (long long)map.offset(x[6], int(x[7])));
    } else if (std::strcmp(name, "long_row") == 0) {
      Map<char> map{};
      map.data = kFirst, map.batch = x[0], map.channel = x[1], map.column = x[2];
      std::printf("%lld\n", start(map.at(x[3])) + (long long)map.long_row_offset(x[4], x[5]));
    } else if (std::strcmp(name, "head") == 0) {
      Heads<char> heads{};
      heads.map.data = kFirst, heads.map.batch = x[0], heads.count = int(x[1]), heads.stride = x[2];
      std::printf("%lld\n", start(heads.at(unsigned(x[3]))));
    } else if (std::strcmp(name, "token") == 0) {
      std::printf("%lld\n", (long long)token_offset(x[0], int(x[3]), int(x[1]), x[4]) + x[2]);
    } else if (std::strcmp(name, "mean") == 0) {
      PartialSums parts{};
      parts.channel_stride = x[7];
      const int64_t row = PartialSums::row(int(x[0]), int(x[4]), x[1], int(x[5]), int(x[2]));
      std::printf("%lld\n", (long long)parts.mean(row, int(x[3])));
    } else if (std::strcmp(name, "convolution") == 0) {
      ConvolutionOutput<float> out{};
      out.channels = int(x[3]), out.tokens = int(x[4]);
      out.channel = x[5], out.token = x[6];
      std::printf("%lld\n", (long long)out.offset(x[0], int(x[1]), int(x[2])));
    } else {
      return 3;
    }
  }
}
"""

Case = tuple[str, list[int], int]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offsets")
    source, target = folder / "offsets.cpp", folder / "offsets"
    source.write_text(PROGRAM)
    cxx = shlex.split(emulator.find_cxx())
    command = [
        *(*cxx, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-O1", "-DTDNET_EMULATOR"),
        # An overflow ends the program, even where the result would come out right.
        *("-fsanitize=undefined", "-fno-sanitize-recover=undefined"),
        *("-include", emulator.RUNTIME / "cuda_types.h", f"-I{emulator.ROOT / 'csrc'}"),
        *(source, "-o", target),
    ]
    subprocess.run(command, check=True)
    return target


def results(program: Path, cases: list[Case]) -> list[int]:
    lines = [" ".join([name, *map(str, (numbers + [0] * 8)[:8])]) for name, numbers, _ in cases]
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"
    return [int(line) for line in done.stdout.split()]


def check(program: Path, cases: list[Case], largest: int) -> None:
    """Every case is right, and they reach beyond `largest`."""
    assert max(expected for *_, expected in cases) > largest
    for case, result in zip(cases, results(program, cases), strict=True):
        assert result == case[2], case


def last_of(*sizes: int) -> list[int]:
    return [size - 1 for size in sizes]


# [B, N, M] with B * N * M beyond 2^31, 2^32 and 2^40, each size within 31 bits.
AFFINITIES = [
    (1, 46_341, 46_341),
    (2, 32_768, 32_769),
    (97, 18_721, 1_225),
    (3, 2**20, 2**20),
    (1, 2**31 - 1, 2**31 - 1),
    (2**20, 2**21, 3),
]


@pytest.mark.parametrize("function", ["affinity", "labels", "token"])
def test_matrices(program, function):
    generator = random.Random(1)
    cases: list[Case] = []
    for batch, rows, columns in AFFINITIES:
        assert batch * rows * columns > 2**31
        inside = [[generator.randrange(size) for size in (batch, rows, columns)] for _ in range(20)]
        for b, row, column in [last_of(batch, rows, columns), *inside]:
            expected = (b * rows + row) * columns + column
            cases.append((function, [b, row, column, rows, columns], expected))
    check(program, cases, 2**40)


def map_strides(channels: int, height: int, width: int, layout: str) -> list[int]:
    if layout == "contiguous":
        return [channels * height * width, height * width, width, 1]
    if layout == "channels_last":
        return [channels * height * width, 1, width * channels, channels]
    # Rows and columns exchanged, every other number.
    return [2 * channels * height * width, 2 * height * width, 2, 2 * height]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "apart"])
def test_maps(program, layout):
    generator = random.Random(2)
    cases: list[Case] = []
    for size in [(64, 512, 769, 1537), (1, 4096, 2**15, 2**15 - 1), (3, 2**12, 2**10, 2**20)]:
        strides = map_strides(*size[1:], layout)
        inside = [[generator.randrange(n) for n in size] for _ in range(20)]
        for b, c, y, x in [last_of(*size), *inside]:
            place = (b, c, y, x)
            expected = sum(i * stride for i, stride in zip(place, strides, strict=True))
            cases.append(("map", [*strides, size[3], b, c, y * size[3] + x], expected))
    check(program, cases, 2**40)


# Sizes [B, heads, C, N]: strides of a batch and of a head beyond 2^31, 2^32 and 2^40, and their
# multiples, and a count of batches and heads that has 31 bits.
HEADS = [
    (64, 8, 64, 2**21),
    (3, 2**12, 2**9, 2**20),
    (2**21, 2**10, 2, 2**10),
    (2, 2, 2**31, 2**20),
]


@pytest.mark.parametrize("channels_last", [False, True])
def test_heads(program, channels_last):
    generator = random.Random(5)
    cases: list[Case] = []
    for batch, heads, channels, tokens in HEADS:
        batch_stride, head_stride = heads * channels * tokens, channels
        if not channels_last:
            head_stride *= tokens
        inside = [[generator.randrange(n) for n in (batch, heads)] for _ in range(20)]
        for b, head in [last_of(batch, heads), *inside]:
            expected = b * batch_stride + head * head_stride
            cases.append(("head", [batch_stride, heads, head_stride, b * heads + head], expected))
    check(program, cases, 2**40)


@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_as_one_and_results_of_convolutions(program, channels_last):
    generator = random.Random(3)
    cases: list[Case] = []
    for size in [(64, 512, 2**21), (1, 4096, 2**30), (3, 2**12, 2**30 - 1)]:
        _, channels, tokens = size
        channel, token = (1, channels) if channels_last else (tokens, 1)
        inside = [[generator.randrange(n) for n in size] for _ in range(20)]
        for b, c, t in [last_of(*size), *inside]:
            expected = b * channels * tokens + c * channel + t * token
            strides = [channels * tokens, channel, token]
            cases.append(("long_row", [*strides, b, c, t], expected))
            cases.append(("convolution", [b, c, t, channels, tokens, channel, token], expected))
    check(program, cases, 2**40)


def test_means_of_parts(program):
    generator = random.Random(4)
    cases: list[Case] = []
    for size in [(8, 1, 18_721, 512), (128, 97, 2**16, 2**14), (2, 2, 2**31 - 1, 2**20)]:
        _, batch, queries, channels = size
        inside = [[generator.randrange(n) for n in size] for _ in range(20)]
        for split, b, query, channel in [last_of(*size), *inside]:
            row = (split * batch + b) * queries + query
            numbers = [split, b, query, channel, batch, queries, 0, channels]
            cases.append(("mean", numbers, row * channels + channel))
    check(program, cases, 2**40)


def test_expanded_maps(program):
    strides = [0, 2**40, 0, 0]
    check(program, [("map", [*strides, 1000, 2**30, 2**20 - 1, 2**30], (2**20 - 1) * 2**40)], 2**59)


def test_32_bits_would_be_seen(program):
    """What this file relies on: the sanitizer stops the program at an overflow."""
    done = subprocess.run(
        [program], input=f"map {2**40} 0 0 0 1 {2**40} 0 0", capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "signed integer overflow" in done.stderr
