"""Whether the kernels work on this GPU, in the shortest time, and what is wrong if not.

    python benchmarks/gpu_smoke.py                # CUDA and Triton kernels, on the first GPU
    python benchmarks/gpu_smoke.py --device cpu   # the same program, small, on the CPU kernels

The steps go from the simplest to the most demanding, so that the first failure says most: a step
that fails names its kernel and what is to be suspected. An error of the device itself ends the
steps of that backend, since nothing can run after it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [str(TESTS / "device"), str(TESTS)]

import device_checks as checks  # noqa: E402
import samples  # noqa: E402

import tdnet_ops  # noqa: E402
from tdnet_ops import backends, reference  # noqa: E402
from tdnet_ops.bench import case as bench  # noqa: E402
from tdnet_ops.bench.cases import CASES  # noqa: E402

Kernel = tuple[str, Callable[[], object]]  # name, and a check of it

HALF = (torch.float16, torch.bfloat16)
# Of a result, |ours - exact| / |exact| in the 2-norm: well above rounding, far below any mistake.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Setting:
    """What runs where; `small` for a CPU."""

    backend: str
    device: torch.device
    small: bool


# --- the steps ------------------------------------------------------------------------------------


def tiny(setting: Setting) -> Iterator[Kernel]:
    chosen = samples.select(["middle"], ["channels_last", "contiguous"], checks.DTYPES)
    for sample in chosen:
        call = checks.by_backend(sample.operator, setting.backend)
        yield str(sample), partial(samples.check, sample, call)


def several_blocks(setting: Setting) -> Iterator[Kernel]:
    for sample in checks.typical(["channels_last"]):
        call = checks.by_backend(sample.operator, setting.backend)
        yield str(sample), partial(samples.check, sample, call)


def one_hot(setting: Setting) -> Iterator[Kernel]:
    call = checks.by_backend("pooled_affinity", setting.backend)
    for dtype in checks.DTYPES:
        yield f"pooled_affinity {dtype}", partial(checks.check_one_hot, call, dtype)


def flagship(setting: Setting) -> Iterator[Kernel]:
    """TDNet at 769 x 1537: the shapes that the kernels are made for, inner hops included."""
    size = "tiny" if setting.small else "769x1537"
    for dtype in checks.DTYPES:
        for case in (case for case in CASES if size in case.name):
            arguments = case.build(
                bench.Setting("channels_last", dtype, 1, setting.device)
            ).arguments
            schema = samples.schema_of(case.operator).values()
            required = arguments[: sum(not x.has_default_value() for x in schema)]
            for some in (required, arguments):
                what = f"{case} {dtype}, {len(some)} arguments"
                yield what, partial(_check_exact, setting.backend, case.operator, some)


def repeats(setting: Setting) -> Iterator[Kernel]:
    for sample in checks.typical(["channels_last"]):
        call = checks.by_backend(sample.operator, setting.backend)
        times = 5 if setting.small else 50
        yield str(sample), partial(checks.check_repeats, call, sample.arguments(), times)


def poisoned(setting: Setting) -> Iterator[Kernel]:
    """All samples by the compiled kernels; Triton compiles for many, the tests run them."""
    everything = setting.backend == "cuda"
    chosen = samples.select(dtypes=checks.DTYPES) if everything else checks.typical()
    for sample in chosen:
        call = checks.by_backend(sample.operator, setting.backend)
        yield str(sample), partial(checks.check_written, sample, call)


def side_stream(setting: Setting) -> Iterator[Kernel]:
    for sample in checks.typical(["channels_last"], HALF[:1]):
        call = checks.by_backend(sample.operator, setting.backend)
        call(*sample.arguments())
        yield str(sample), partial(checks.check_stream_order, sample, call)
        arguments = sample.arguments()
        yield str(sample), partial(checks.check_no_synchronisation, partial(call, *arguments))


def graphs(setting: Setting) -> Iterator[Kernel]:
    for sample in checks.typical(["channels_last"], (torch.float32, torch.float16)):
        call = checks.by_backend(sample.operator, setting.backend)
        yield str(sample), partial(checks.check_graph, sample, call)


def first_calls(setting: Setting) -> Iterator[Kernel]:
    ways = ("thread",) if setting.device.type == "cpu" else ("stream", "graph")
    for way in ways:
        yield f"all operators, {way}", partial(_first_call, setting, way)


def flat(setting: Setting) -> Iterator[Kernel]:
    on_cpu = setting.device.type == "cpu"
    count = 50 if on_cpu else 10_000
    allocated = checks.resident if on_cpu else checks.allocated_on_device
    most = checks.HOST_SLACK if on_cpu else 0
    for sample in checks.typical(["channels_last"], HALF[:1]):
        call = checks.by_backend(sample.operator, setting.backend)
        once = partial(call, *sample.arguments())
        yield str(sample), partial(checks.check_flat_memory, once, allocated, count, most)


@dataclass(frozen=True)
class Step:
    kernels: Callable[[Setting], Iterator[Kernel]]
    suspect: str
    cuda_only: bool = False


STEPS = {
    "tiny": Step(
        tiny, "the architecture that was compiled for, the stream, launch bounds, shared memory"
    ),
    "several_blocks": Step(several_blocks, "an index or an offset of a block, a ragged tile"),
    "one_hot": Step(one_hot, "the operand layout of a matrix instruction"),
    "flagship": Step(
        flagship, "swizzled shared memory, the exchange of weights between warps, the last tile"
    ),
    "repeats": Step(repeats, "a race: a barrier or a wait for a copy is missing"),
    "poisoned": Step(poisoned, "a result or workspace that is not written, a read beside a map"),
    "side_stream": Step(
        side_stream, "a launch on another stream than torch's current one, a wait", cuda_only=True
    ),
    "graphs": Step(graphs, "an address or number that is kept from an earlier call", True),
    "first_calls": Step(first_calls, "what only the first call of a process sets up"),
    "flat": Step(flat, "a tensor, an event or a handle that is never given back"),
}


# --- checks of their own --------------------------------------------------------------------------


def _check_exact(backend: str, name: str, arguments: tuple) -> None:
    """Against the definition in float64, on the same device."""
    found = getattr(tdnet_ops, name)(*arguments, backend=backend)
    told = samples.OPERATORS[name]
    if told.compare is not None:
        told.compare(found, arguments, name)
        return
    exact = getattr(reference, name)(*samples.widen(arguments))
    for got, right in zip(samples.tensors([found]), samples.tensors([exact]), strict=True):
        error = checks.relative_error(got, right)
        allowed = 0.0 if told.exact else TOLERANCES[got.dtype]
        assert error <= allowed, f"relative error {error:.1e}, allowed {allowed:.0e}"


def _first_call(setting: Setting, way: str) -> None:
    program = TESTS / "device" / "first_call.py"
    command = [sys.executable, str(program), str(setting.device), setting.backend, way]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr.strip().splitlines()[-1:]
    assert result.stdout.count(":right") == len(samples.NAMES), result.stdout


# --- running them ---------------------------------------------------------------------------------


def _is_lost(device: torch.device) -> bool:
    """Whether the device can run nothing more in this process."""
    if device.type != "cuda":
        return False
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return True
    return False


def run_step(name: str, setting: Setting) -> tuple[int, bool]:
    """Runs the checks of one step and prints a line for it and for each failure.

    Returns:
        How many kernels failed, and whether the device was lost.
    """
    step, start, count, failed = STEPS[name], time.perf_counter(), 0, 0
    lost = False
    checked = "nothing yet"
    try:
        for checked, check in step.kernels(setting):
            count += 1
            try:
                check()
                if setting.device.type == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                failed += 1
                lost = _is_lost(setting.device)
                _say_failure(setting, name, checked, error)
                if lost:
                    break
    except Exception as error:  # Making the numbers of a check failed.
        failed, lost = failed + 1, _is_lost(setting.device)
        _say_failure(setting, name, f"after {checked}", error)
    seconds = time.perf_counter() - start
    verdict = f"{failed} FAILED of {count}; suspect {step.suspect}" if failed else f"{count} right"
    print(f"{setting.backend:7} {name:12} {seconds:6.1f} s  {verdict}", flush=True)
    return failed, lost


def _say_failure(setting: Setting, step: str, kernel: str, error: Exception) -> None:
    text = (str(error).strip().splitlines() or [""])[0]
    print(
        f"{setting.backend:7} {step:12} FAILED {kernel}: {type(error).__name__}: {text}", flush=True
    )


def run_steps(names: Sequence[str], setting: Setting) -> int:
    """Returns how many checks failed."""
    failures = 0
    for name in names:
        if STEPS[name].cuda_only and setting.device.type != "cuda":
            continue
        failed, lost = run_step(name, setting)
        failures += failed
        if lost:
            print(f"{setting.backend:7} the device is lost for this process, the rest was not run")
            break
    return failures


def _child(names: Sequence[str], setting: Setting) -> int:
    """The steps in a process of its own, so that one backend cannot spoil the other's."""
    command = [sys.executable, __file__, "--device", str(setting.device)]
    command += ["--backend", setting.backend, "--steps", *names]
    blocking = {"CUDA_LAUNCH_BLOCKING": "1"} if list(names) == ["tiny"] else {}
    return subprocess.run(command, env={**os.environ, **blocking}).returncode


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default="cuda", help="default: cuda")
    parser.add_argument("--backend", choices=backends.NAMES, help="only this one, in this process")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    on_cpu = options.device.type == "cpu"
    device = (
        options.device if on_cpu else torch.device(options.device.type, options.device.index or 0)
    )
    samples.use_device(device)
    if options.backend:
        torch.backends.cudnn.allow_tf32 = False  # for the definitions' convolutions
        return 1 if run_steps(options.steps, Setting(options.backend, device, on_cpu)) else 0
    names = [x for x in backends.preference(device.type) if x != "reference"]
    refused = {
        name: backends.why_unavailable(name, "spatial_pool", device, torch.float32)
        for name in names
    }
    for name, reason in refused.items():
        if reason:
            print(f"{name:7} FAILED: cannot run here: {reason}", flush=True)
    settings = [Setting(name, device, on_cpu) for name in names if not refused[name]]
    codes = [1 for reason in refused.values() if reason]
    # Blocking launches first and alone: a failure there is reported by the very call.
    for steps in (
        [x for x in options.steps if x == "tiny"],
        [x for x in options.steps if x != "tiny"],
    ):
        if steps:
            with ThreadPoolExecutor(len(settings) or 1) as pool:
                codes += pool.map(partial(_child, steps), settings)
    bad = sum(code != 0 for code in codes)
    print(f"smoke: {'all right' if not bad else 'FAILED, see above'} ({', '.join(names)})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
