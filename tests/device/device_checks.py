"""Checks of what a GPU may get wrong where a CPU cannot; each raises AssertionError.

A check takes the call that it judges, so that test_checks_can_fail.py can hand it wrong ones, and
benchmarks/gpu_smoke.py can run it in an order of its own.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import samples
import torch
from torch import Tensor

import tdnet_ops

Call = Callable[..., Any]
LONG_SLEEP = 200_000_000  # cycles: about a tenth of a second

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def typical(
    layouts: Sequence[str] = ("contiguous", "channels_last"),
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> list[samples.Sample]:
    """Of each operator, one call that a GPU runs in several blocks, by layout and dtype."""
    return [
        sample
        for operator, told in samples.OPERATORS.items()
        for sample in samples.select([told.several_blocks], layouts, dtypes, [operator])
    ]


def by_backend(operator: str, backend: str) -> Call:
    return functools.partial(getattr(tdnet_ops, operator), backend=backend)


def as_integers(x: Tensor) -> Tensor:
    """The bits of the numbers: NaN equal themselves, and 0 is not -0."""
    if not x.is_floating_point():
        return x
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same_bits(actual: Any, expected: Any, what: str) -> None:
    for got, right in zip(samples.tensors([actual]), samples.tensors([expected]), strict=True):
        assert (got.shape, got.dtype) == (right.shape, right.dtype), what
        differ = as_integers(got) != as_integers(right)
        assert not differ.any(), f"{what}: {int(differ.sum())} of {got.numel()} numbers differ"


# --- numbers --------------------------------------------------------------------------------------


def check_repeats(call: Call, arguments: Sequence[Any], times: int = 50) -> None:
    """The same bits every time; a race between threads or blocks shows as a difference."""
    first = call(*arguments)
    for number in range(1, times):
        assert_same_bits(call(*arguments), first, f"call {number} differs from call 0")


def shifted(x: Tensor) -> Tensor:
    """The same view one number further into memory, which starts with a NaN."""
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    longer = torch.full((len(whole) + 1,), float("nan"), dtype=x.dtype, device=x.device)
    longer[1:] = whole
    return longer.as_strided(x.size(), x.stride(), x.storage_offset() + 1)


def check_misaligned(sample: samples.Sample, call: Call) -> None:
    """Each tensor alone, and all together, may start at any number: no vector is aligned then."""
    arguments = sample.arguments()
    count = len(samples.tensors(arguments))
    for chosen in [*({i} for i in range(count)), set(range(count))]:
        places = iter(range(count))
        moved = samples.convert(arguments, lambda x: shifted(x) if next(places) in chosen else x)  # noqa: B023
        samples.check_result(sample, arguments, call(*moved))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Results and workspaces start as NaN (integers: as their largest number)."""
    if torch.cuda.is_available():
        # 0xFF in every byte is NaN in every dtype: what torch hands out next holds it.
        del_soon = [
            torch.full((n,), 255, dtype=torch.uint8, device="cuda") for n in (1 << 28, 1000)
        ]
        del del_soon
    usual = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(usual)


def check_written(sample: samples.Sample, call: Call) -> None:
    """Every number of the result is written, and no workspace is read before."""
    with poisoned_memory():
        samples.check(sample, call)


def one_hot_case(dtype: torch.dtype, channels: int = 64) -> tuple[Tensor, Tensor]:
    """Queries that pick one channel each, and keys of small integers: every logit is exact.

    Returns:
        q [1, channels, 1, 3 * channels], k [1, channels, 5, 29]; query i picks channel
        i mod channels, and the numbers of a key tell its place and channel apart.
    """
    q = torch.eye(channels).repeat(1, 3).reshape(1, channels, 1, 3 * channels)
    keys = torch.arange(145)
    numbers = (keys[None] * 7 + torch.arange(channels)[:, None] * 13) % 251 - 125
    k = numbers.reshape(1, channels, 5, 29)
    return q.to(dtype), k.to(dtype)


def check_one_hot(call: Call, dtype: torch.dtype) -> None:
    """pooled_affinity of `one_hot_case` must be exact, also in TF32 and half precision."""
    q, k = one_hot_case(dtype)
    expected = (q[0, :, 0].double().T @ k[0].flatten(1).double())[None].to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        here = [samples.moved(x.contiguous(memory_format=layout), samples.DEVICE) for x in (q, k)]
        found = call(*here, 1, "max", 1.0).cpu()
        wrong = (found != expected).nonzero()
        assert len(wrong) == 0, (
            f"{len(wrong)} of {expected.numel()} logits wrong, the first at query "
            f"{wrong[0, 1]}, key {wrong[0, 2]} ({layout})"
        )


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact| in the 2-norm; infinite where a number is NaN."""
    error = ((actual.double() - exact).norm() / exact.norm()).item()
    return error if error == error else float("inf")


def check_precision(full: float, rounded: float, follows: bool = True) -> None:
    """Relative errors of float32 calls with TF32 forbidden (`full`) and allowed (`rounded`).

    Args:
        follows: whether a call must make use of TF32 where it is allowed.
    """
    assert full < 1e-5, f"error {full:.1e} with TF32 forbidden: it was used, or worse"
    assert rounded < 1e-3, f"error {rounded:.1e} with TF32 allowed: more than its rounding"
    assert not follows or rounded > 3e-5, f"error {rounded:.1e} with TF32 allowed: it was not used"


def check_rows(found: Tensor, exact: Tensor, rows: Sequence[int]) -> None:
    """Some rows of a result too large to compare as a whole; `exact` holds only these rows."""
    for place, row in enumerate(rows):
        error = relative_error(found[row].cpu(), exact[place].cpu().double())
        assert error < 1e-2, f"row {row}: relative error {error:.1e}"


# --- memory and time ------------------------------------------------------------------------------


def check_flat_memory(
    call: Call, allocated: Callable[[], int], calls: int = 10_000, most: int = 0
) -> None:
    """Calls leave at most `most` bytes behind together, by the number that `allocated` tells."""
    for _ in range(20):
        call()
    before = allocated()
    for _ in range(calls):
        call()
    grown = allocated() - before
    assert grown <= most, f"{calls} calls left {grown} bytes behind"


def allocated_on_device() -> int:
    """Bytes that torch has given out on the current GPU."""
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


# Python's heap breathes.
HOST_SLACK = 16 << 20


def resident() -> int:
    """Bytes of this process in the host's memory."""
    text = Path("/proc/self/status").read_text()
    kilobytes = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert kilobytes is not None
    return int(kilobytes[1]) << 10


def check_peak(call: Call, peak_of: Callable[[Call], int], most: int) -> None:
    """A call takes at most `most` bytes on top of its arguments, its result included."""
    taken = peak_of(call)
    assert taken <= most, f"{taken} bytes taken at most, allowed {most}"


def peak_on_device(call: Call) -> int:
    """Bytes that a call takes at most on the current GPU; the first call of several."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# --- streams, graphs ------------------------------------------------------------------------------


def renew(arguments: Any, seed: int) -> None:
    """New numbers in place."""
    generator = torch.Generator().manual_seed(seed)
    for x in samples.tensors(arguments):
        x.copy_(torch.randn(x.shape, generator=generator))


def poison(outputs: Any) -> None:
    for out in samples.tensors([outputs]):
        out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max)


def check_replays(
    replay: Callable[[], object], arguments: Sequence[Any], outputs: Any, call: Call, times: int = 3
) -> None:
    """What was captured computes anew from the numbers that stand in `arguments` then."""
    for seed in range(times):
        renew(arguments, seed)
        poison(outputs)
        replay()
        assert_same_bits(outputs, call(*arguments), f"replay {seed} differs from a call")


def capture(call: Call, arguments: Sequence[Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of one call, and the result that its replays write."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(*arguments)
    return graph, outputs


def check_graph(sample: samples.Sample, call: Call) -> None:
    arguments = sample.arguments()
    graph, outputs = capture(call, arguments)
    check_replays(graph.replay, arguments, outputs, call)


def check_stream_order(sample: samples.Sample, call: Call) -> None:
    """A call on a side stream, behind a sleep, reads what the sleep kept back, and no later."""
    arguments = sample.arguments()
    late = sample.arguments()
    poison(late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG_SLEEP)
        for target, source in zip(samples.tensors(late), samples.tensors(arguments), strict=True):
            target.copy_(source)
        out = call(*late)
        poison(late)
    stream.synchronize()
    samples.check_result(sample, arguments, out)


def check_no_synchronisation(call: Call) -> None:
    """The call returns while the GPU still sleeps, and torch sees no synchronisation in it."""
    call()
    torch.cuda.synchronize()
    awake = torch.cuda.Event()
    torch.cuda._sleep(4 * LONG_SLEEP)
    awake.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    slept = not awake.query()
    torch.cuda.synchronize()
    assert slept, "the call returned only after the GPU had finished what was before it"


def check_guard(sample: samples.Sample, call: Call, device: torch.device) -> None:
    """Tensors of `device` while another is current: right, there, and the other stays current."""
    arguments = samples.convert(sample.arguments(), lambda x: samples.moved(x, device))
    current = torch.cuda.current_device()
    assert current != device.index
    out = call(*arguments)
    assert torch.cuda.current_device() == current, "the call left another device current"
    assert all(x.device == device for x in samples.tensors([out]))
    # Another kernel on the current device must still go there.
    assert torch.ones(3, device="cuda").sum().item() == 3
    samples.check_result(sample, arguments, out)
