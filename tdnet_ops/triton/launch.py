"""Which configuration a kernel runs in, and the launch itself.

A configuration is a dictionary: tile sizes (constants of the kernel), num_warps, num_stages. For a
known class of devices it stands in defaults.json, by kernel and shape class; elsewhere
triton.autotune chooses among the kernel's candidates in the first call. The choice is kept for the
process.

The table names the Tritons that made it. Users bring others, under which a configuration may spill
registers, or not fit at all: the first call of a shape class compiles it and looks, and fails over
to the next candidate, the largest first, until one is clean. `python -m tdnet_ops.triton.tune`
writes the table anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from tdnet_ops.triton.compiled import flaw

Configuration = Mapping[str, int]

# Multiplications and additions fuse, whatever Triton's default.
_OPTIONS = {"enable_fp_fusion": True}
INTERPRETED: bool = triton.knobs.runtime.interpret

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a device class of the table comes from."""

    how: str  # "timed" on such a device, or "predicted" by compiling
    triton: Sequence[str]  # versions under which every configuration is clean


@dataclass(frozen=True)
class Table:
    """defaults.json."""

    configurations: dict[str, dict[str, dict[str, Configuration]]]
    """Device class -> kernel -> shape class -> configuration."""
    sources: dict[str, Source]
    """By device class."""

    @classmethod
    def read(cls, text: str) -> Table:
        table = json.loads(text)
        sources = {name: Source(**source) for name, source in table["sources"].items()}
        return cls(table["configurations"], sources)

    def find(self, device: str, kernel: str, shape_class: str) -> Configuration | None:
        return self.configurations.get(device, {}).get(kernel, {}).get(shape_class)


@functools.cache
def table() -> Table:
    return Table.read(resources.files(__package__).joinpath("defaults.json").read_text())


@dataclass
class Choice:
    """What the launches of one shape class run in."""

    left: list[Configuration]
    """The first runs; the others are to fail over to."""
    timed: bool
    """By this Triton: it runs well, whatever the compiler made of it."""
    seen: set[Any] = field(default_factory=set)
    """Compiled kernels that were looked at: a shape class has several, by sizes and strides of 1,
    alignment, and which arguments are None."""


# By device class, kernel and shape class.
choices: dict[tuple[str, str, str], Choice] = {}


@functools.cache
def device_class(device: torch.device) -> str:
    """The key of the table: "cuda-90", "hip-gfx942", ...; "interpreter" under TRITON_INTERPRET."""
    if INTERPRETED:
        return "interpreter"
    with _current(device):
        target = triton.runtime.driver.active.get_current_target()
    return f"{target.backend}-{target.arch}"


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type == "cpu" or device.index == torch.accelerator.current_device_index():
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)


def padded(size: int, most: int) -> int:
    """The power of two that holds `size`, at least 16 (tl.dot takes no less) and at most `most`."""
    return min(max(16, 1 << (size - 1).bit_length()), most)


def cdiv(size: int, tile: int) -> int:
    return -(-size // tile)


def kind(x: Tensor, allow_tf32: bool = False) -> str:
    """What a product of such tensors runs on, the first part of a shape class."""
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if allow_tf32 else "float32"


def layout(*operands: Tensor | None) -> str:
    """The last part of a shape class: "-strided" where channels of a map are not adjacent.

    Such a map is loaded number by number, with an address each in a register: tiles that fit
    otherwise spill.
    """
    adjacent = all(x is None or x.shape[1] == 1 or x.stride(1) == 1 for x in operands)
    return "" if adjacent else "-strided"


def launch(
    kernel: Any,
    like: Tensor,
    shape_class: str,
    candidates: Sequence[Configuration],
    programs: Callable[[Configuration], int],
    **arguments: Any,
) -> None:
    """Runs `kernel`, a triton.jit function, on the current stream of a device.

    Args:
        like: a tensor of that device.
        shape_class: launches of one class share a configuration.
        candidates: to choose from where the table has none, and to fail over to; the first is the
            one to take where nothing can be timed.
        programs: the size of the grid.
        arguments: all of the kernel's but the constants of the configuration. What the kernel
            writes it does not read: timing runs it many times.

    Raises:
        triton.OutOfResources and other errors of Triton: no candidate fits.
    """
    key = (device_class(like.device), kernel.__name__, shape_class)
    with _current(like.device):
        choice = choices.get(key)
        if choice is None:
            choice = _choose(key, kernel, candidates, programs, arguments, _capturing(like.device))
        try:
            compiled = run(kernel, choice.left[0], programs, arguments)
        except (TritonError, RuntimeError) as error:
            if not _does_not_fit(error):
                raise
            _fail_over(choice, key, kernel, programs, arguments)
            compiled = run(kernel, choice.left[0], programs, arguments)
        if not choice.timed and compiled not in choice.seen:
            # It has run, and rightly; the next launch takes the better one.
            _fail_over(choice, key, kernel, programs, arguments)
    if launched is not None:
        launched((compiled, shape_class))


def run(
    kernel: Any,
    configuration: Configuration,
    programs: Callable[[Configuration], int],
    arguments: Mapping[str, Any],
) -> Any:
    """Launches one configuration; returns what was compiled for it."""
    return kernel[(programs(configuration),)](**arguments, **configuration, **_OPTIONS)


def _capturing(device: torch.device) -> bool:
    """Whether launches are being recorded in a CUDA graph, where nothing can be timed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _choose(
    key: tuple[str, str, str],
    kernel: Any,
    candidates: Sequence[Configuration],
    programs: Callable[[Configuration], int],
    arguments: Mapping[str, Any],
    capturing: bool,
) -> Choice:
    """The choice of a shape class in its first launch; compiles, and launches only to time."""
    shipped = table().find(*key)
    first, timed = candidates[0], False
    if shipped is not None:
        source = table().sources[key[0]]
        first, timed = shipped, source.how == "timed" and triton.__version__ in source.triton
    elif _can_time() and not capturing:
        first, timed = _fastest(kernel, candidates, programs, arguments), True
    place = candidates.index(first) + 1 if first in candidates else 0
    choice = Choice([first, *candidates[place:]], timed or INTERPRETED)
    if not choice.timed:
        _fail_over(choice, key, kernel, programs, arguments)
    if shipped is not None or not capturing:
        choices[key] = choice
    return choice


def _does_not_fit(error: Exception) -> bool:
    """Whether it is about one configuration: too large, or the compiler fails on it."""
    if INTERPRETED:
        return False
    return isinstance(error, TritonError) or "PassManager::run failed" in str(error)


def _fail_over(
    choice: Choice,
    key: tuple[str, str, str],
    kernel: Any,
    programs: Callable[[Configuration], int],
    arguments: Mapping[str, Any],
) -> None:
    """Moves on to the first configuration that is clean with these arguments; launches nothing.

    Where none is, to the one that spills least.

    Raises:
        the error of the last one, if none fits.
    """
    flawed: list[tuple[int, Configuration]] = []
    for place, configuration in enumerate(choice.left):
        try:
            compiled = kernel.warmup(
                **arguments, **configuration, **_OPTIONS, grid=(programs(configuration),)
            )
            reason = flaw(compiled)
        except (TritonError, RuntimeError) as error:
            last = place == len(choice.left) - 1
            if not _does_not_fit(error) or (last and not flawed):
                raise
            reason = str(error)
        else:
            if reason is None:
                choice.left = choice.left[place:]
                choice.seen.add(compiled)
                return
            flawed.append((compiled.n_spills, configuration))
            # Nothing more to be done about it.
            choice.seen.add(compiled)
        _log.info(
            "%s, %s, %s: %s under Triton %s: %s", *key, configuration, triton.__version__, reason
        )
    choice.left = [min(flawed, key=lambda found: found[0])[1]]


def _can_time() -> bool:
    """Whether kernels really run: not under the interpreter, nor where they are only compiled."""
    return not INTERPRETED and hasattr(triton.runtime.driver.active, "get_benchmarker")


def _fastest(
    kernel: Any,
    candidates: Sequence[Configuration],
    programs: Callable[[Configuration], int],
    arguments: Mapping[str, Any],
) -> Configuration:
    """By triton.autotune, which passes over those that do not fit."""
    options = ("num_warps", "num_stages")
    configurations = {
        triton.Config(
            {name: value for name, value in candidate.items() if name not in options},
            **{name: candidate[name] for name in options if name in candidate},
        ): candidate
        for candidate in candidates
    }
    tuner = triton.autotune(configs=list(configurations), key=[])(kernel)
    tuner[lambda constants: (programs(constants),)](**arguments, **_OPTIONS)
    return configurations[tuner.best_config]


# Who is told of every launch: targets.py.
launched: Callable[[tuple[Any, str]], None] | None = None
