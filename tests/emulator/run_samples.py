"""Run samples through the emulated CUDA kernels: `python run_samples.py --help`."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
from pathlib import Path

import emulator
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import samples

# These take `allow_tf32`.
TENSOR_CORES = (
    "pooled_affinity",
    "softmax_propagate",
    "attention_propagate",
    "block_sum_reduce",
    "block_sum_update",
)


def check(sample: samples.Sample) -> None:
    call = getattr(torch.ops.tdnet_emulator, sample.operator)
    samples.check(sample, call, samples.GPU_ROUNDINGS.get(sample.operator, 0))
    if sample.operator == "attention_propagate":
        check_log_sum_exp(sample, 2**-20)


def check_tf32(sample: samples.Sample) -> None:
    """Both operands of every product, logits of the softmax too, lose 13 of 23 bits."""
    call = functools.partial(getattr(torch.ops.tdnet_emulator, sample.operator), allow_tf32=True)
    samples.check(sample, call, operand_error=2**-11)
    if sample.operator == "attention_propagate":
        check_log_sum_exp(sample, 2**-10, allow_tf32=True)


def check_log_sum_exp(sample: samples.Sample, error: float, **options: bool) -> None:
    """Of the same call by attention_propagate_forward; `error` is relative to a logit's terms."""
    arguments = sample.arguments()
    q, k, *_, scale, heads = arguments
    _, actual = torch.ops.tdnet_emulator.attention_propagate_forward(*arguments, **options)
    queries, keys = (x.double().unflatten(1, (heads, -1)).flatten(3) for x in (q, k))
    factor = queries.shape[2] ** -0.5 if scale is None else scale
    logits = torch.einsum("bhcn,bhcm->bhnm", queries, keys) * factor
    expected = torch.logsumexp(logits, dim=3).unflatten(2, q.shape[2:])
    terms = torch.einsum("bhcn,bhcm->bhnm", queries.abs(), keys.abs()).amax(3) * abs(factor)
    terms = terms.view_as(expected)
    bound = terms * error + 1e-5 * (1 + expected.abs())
    # Beyond float32 a logit is an infinity or NaN.
    held = expected.isfinite() & (terms < 1e37)
    assert ((actual - expected).abs() <= bound)[held].all(), f"{sample}: log_sum_exp"
    for kind in (torch.isnan, torch.isneginf):
        assert kind(actual)[kind(expected)].all(), f"{sample}: log_sum_exp"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", help="parts of sample names; none: all samples")
    parser.add_argument("--kind", choices=emulator.KINDS, default="plain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--drop", metavar="FILE:LINE", default=":0", help="a barrier to leave out")
    parser.add_argument("--multiprocessors", type=int, nargs="+", default=[8])
    parser.add_argument("--tf32", action="store_true", help="float32 samples, with allow_tf32")
    parser.add_argument("--little-shared", action="store_true", help="99 KB a block")
    parser.add_argument("--copies", choices=emulator.COPIES, nargs="+", default=["lazy"])
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    wanted = emulator.environment(options.kind)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        emulator.build("operators", options.kind)  # not under the sanitizer
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    loaded = emulator.load_operators(options.kind)
    torch.set_num_threads(1)
    # Results and workspaces start as NaN, not as the right numbers of a call before.
    torch.use_deterministic_algorithms(True)
    file, _, line = options.drop.rpartition(":")
    chosen = [
        sample
        for sample in samples.SAMPLES + samples.TILE_SAMPLES
        if sample.operator in samples.DECLARED_BY_CUDA
        and (not options.patterns or any(part in str(sample) for part in options.patterns))
    ]
    if options.tf32:
        chosen = samples.select(None, dtypes=[torch.float32], operators=TENSOR_CORES, among=chosen)
    runs = itertools.product(chosen, options.seeds, options.copies, options.multiprocessors)
    most_shared = emulator.LITTLE_SHARED if options.little_shared else emulator.MOST_SHARED
    count = failures = 0
    start = time.perf_counter()
    for sample, seed, copies, multiprocessors in runs:
        count += 1
        loaded.set(seed, copies, most_shared, multiprocessors, (file, int(line)))
        try:
            check_tf32(sample) if options.tf32 else check(sample)
        except Exception as error:
            failures += 1
            text = str(error).partition("\nException raised from")[0]
            how = f"seed {seed} {copies} {multiprocessors} multiprocessors"
            print(f"{sample} {how}: {type(error).__name__}: {text}", flush=True)
    print(f"{count} runs, {failures} failed, {time.perf_counter() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
