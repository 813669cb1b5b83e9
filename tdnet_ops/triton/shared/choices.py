"""Which configuration a kernel runs in.

For a known class of devices it stands in the table, by kernel and shape class; elsewhere
triton.autotune chooses among the kernel's candidates in the first call. The choice is kept.

The table names the Tritons that made it. Users bring others, under which a configuration may spill
registers, or not fit at all: the first call of a shape class compiles it and looks, and fails over
to the next candidate, the largest first, until one is clean.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.errors import TritonError

from tdnet_ops.triton.shared.compiled import flaw
from tdnet_ops.triton.tuning.table import Configuration, Table

# Multiplications and additions fuse, whatever Triton's default.
_OPTIONS = {"enable_fp_fusion": True}
INTERPRETED: bool = triton.knobs.runtime.interpret

_log = logging.getLogger("tdnet_ops.triton")

Key = tuple[str, str, str]
"""Device class, kernel, shape class."""


@dataclass(frozen=True)
class Call:
    """A launch of a kernel in any of its configurations."""

    kernel: Any  # a triton.jit function
    candidates: Sequence[Configuration]
    programs: Callable[[Configuration], int]  # the size of the grid
    arguments: Mapping[str, Any]  # all of the kernel's but the constants of the configuration

    def start(self, configuration: Configuration) -> Any:
        """Launches it; returns what was compiled."""
        grid = (self.programs(configuration),)
        return self.kernel[grid](**self.arguments, **configuration, **_OPTIONS)

    def compile(self, configuration: Configuration) -> Any:
        """The like, and launches nothing."""
        grid = (self.programs(configuration),)
        return self.kernel.warmup(**self.arguments, **configuration, **_OPTIONS, grid=grid)

    def fastest(self) -> Configuration:
        """By triton.autotune, which passes over those that do not fit."""
        options = ("num_warps", "num_stages")
        configurations = {
            triton.Config(
                {name: value for name, value in candidate.items() if name not in options},
                **{name: candidate[name] for name in options if name in candidate},
            ): candidate
            for candidate in self.candidates
        }
        tuner = triton.autotune(configs=list(configurations), key=[])(self.kernel)
        tuner[lambda constants: (self.programs(constants),)](**self.arguments, **_OPTIONS)
        return configurations[tuner.best_config]


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


class Choices:
    """The choice of every shape class. Threads may share it: one chooses, the others wait.

    Args:
        table: where to look first.
        observer: is told of every launch: what was compiled, a triton.compiler.CompiledKernel, and
            its shape class.
    """

    def __init__(self, table: Table, observer: Callable[[Any, str], None] | None = None) -> None:
        self.table = table
        self.by_key: dict[Key, Choice] = {}
        self._observer = observer
        self._device_classes: dict[torch.device, str] = {}
        self._lock = threading.Lock()

    def device_class(self, device: torch.device) -> str:
        """A key of the table, of the current device: "cuda-90", "hip-gfx942", ...

        "interpreter" under TRITON_INTERPRET.
        """
        found = self._device_classes.get(device)
        if found is None:
            found = self._device_classes[device] = _device_class()
        return found

    def configurations(self, device_class: str) -> dict[str, dict[str, Configuration]]:
        """Those chosen so far for a class of devices, by kernel and shape class."""
        found: dict[str, dict[str, Configuration]] = {}
        for (device, kernel, shape_class), choice in self.by_key.items():
            if device == device_class:
                found.setdefault(kernel, {})[shape_class] = choice.left[0]
        return found

    def launch(self, device: torch.device, shape_class: str, call: Call) -> None:
        """Launches `call` on the current device, which is `device`."""
        key = (self.device_class(device), call.kernel.__name__, shape_class)
        choice = self.by_key.get(key)
        if choice is None:
            with self._lock:
                choice = self.by_key.get(key) or self._choose(key, call, _capturing(device))
        try:
            compiled = call.start(choice.left[0])
        except (TritonError, RuntimeError) as error:
            if not _does_not_fit(error):
                raise
            with self._lock:
                _fail_over(choice, key, call)
            compiled = call.start(choice.left[0])
        if not choice.timed and compiled not in choice.seen:
            # It has run, and rightly; the next launch takes the better one.
            with self._lock:
                _fail_over(choice, key, call)
        if self._observer is not None:
            self._observer(compiled, shape_class)

    def _choose(self, key: Key, call: Call, capturing: bool) -> Choice:
        """The choice of a shape class in its first launch; compiles, and launches only to time."""
        shipped = self.table.find(*key)
        first, timed = call.candidates[0], False
        if shipped is not None:
            source = self.table.sources[key[0]]
            first, timed = shipped, source.how == "timed" and triton.__version__ in source.triton
        elif _can_time() and not capturing:
            first, timed = call.fastest(), True
        place = call.candidates.index(first) + 1 if first in call.candidates else 0
        choice = Choice([first, *call.candidates[place:]], timed or INTERPRETED)
        if not choice.timed:
            _fail_over(choice, key, call)
        if shipped is not None or not capturing:
            self.by_key[key] = choice
        return choice


def _device_class() -> str:
    if INTERPRETED:
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return f"{target.backend}-{target.arch}"


def _capturing(device: torch.device) -> bool:
    """Whether launches are being recorded in a CUDA graph, where nothing can be timed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _can_time() -> bool:
    """Whether kernels really run: not under the interpreter, nor where they are only compiled."""
    return not INTERPRETED and hasattr(triton.runtime.driver.active, "get_benchmarker")


def _does_not_fit(error: Exception) -> bool:
    """Whether it is about one configuration: too large, or the compiler fails on it."""
    if INTERPRETED:
        return False
    return isinstance(error, TritonError) or "PassManager::run failed" in str(error)


def _fail_over(choice: Choice, key: Key, call: Call) -> None:
    """Moves on to the first configuration that is clean with these arguments; launches nothing.

    Where none is, to the one that spills least.

    Raises:
        the error of the last one, if none fits.
    """
    flawed: list[tuple[int, Configuration]] = []
    for place, configuration in enumerate(choice.left):
        try:
            compiled = call.compile(configuration)
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
