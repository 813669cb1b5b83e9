"""Which configuration a kernel runs in, and the launch itself.

A configuration is a dictionary: tile sizes (constants of the kernel), num_warps, num_stages. For a
known class of devices it stands in defaults.json, by kernel and shape class; elsewhere
triton.autotune chooses among the kernel's candidates in the first call, and the choice is kept for
the process. `python -m tdnet_ops.triton.tune` writes the table anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import torch
import triton
from torch import Tensor

Configuration = Mapping[str, int]

# Multiplications and additions fuse, whatever Triton's default.
_OPTIONS = {"enable_fp_fusion": True}
INTERPRETED: bool = triton.knobs.runtime.interpret


@functools.cache
def table() -> dict[str, dict[str, dict[str, Configuration]]]:
    """Device class -> kernel -> shape class -> configuration: as shipped, and as tuned since."""
    text = resources.files(__package__).joinpath("defaults.json").read_text()
    return json.loads(text)["configurations"]


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
        candidates: to choose from where the table has none; the first is the one to take where
            nothing can be timed.
        programs: the size of the grid.
        arguments: all of the kernel's but the constants of the configuration. What the kernel
            writes it does not read: timing runs it many times.
    """
    known = table().setdefault(device_class(like.device), {}).setdefault(kernel.__name__, {})
    with _current(like.device):
        chosen = known.get(shape_class)
        if chosen is None:
            if _capturing(like.device):
                chosen = candidates[0]
            else:
                chosen = known[shape_class] = choose(kernel, candidates, programs, arguments)
        compiled = run(kernel, chosen, programs, arguments)
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


def _tuned(
    kernel: Any,
    candidates: Sequence[Configuration],
    programs: Callable[[Configuration], int],
    arguments: Mapping[str, Any],
) -> Configuration:
    """The fastest candidate by triton.autotune; the first where nothing can be timed."""
    if INTERPRETED or len(candidates) == 1:
        return candidates[0]
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


# How a configuration is chosen where the table has none, and who is told of every launch: for
# tune.py and targets.py.
choose: Callable[..., Configuration] = _tuned
launched: Callable[[tuple[Any, str]], None] | None = None
