"""Latency of every model's stream, a frame at a time: labels out minus frame in.

    python benchmarks/streaming_latency.py --csv latency.csv                  # on a GPU
    python benchmarks/streaming_latency.py --device cpu --size 65x129 --frames 3

Weights are random: time does not depend on them. What the next frame needs from the past
(`prepare`) is done between frames and not counted; on a GPU its launch belongs to `step`. Beside
each model stands what `tdnet.optimize` makes of it, and beside a TDNet the same network run on
whole clips, which encodes and attends to every frame of the window anew: what streaming saves. The
forms of a model are timed in turns, a frame each.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from tdnet import VideoSegmenter, build_model, optimize
from tdnet.models import TDNet, model_names

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = ("769x1537", "1024x2048")
WARM_UP = 5  # frames: fills the window of past frames, and chooses the library's algorithms


@dataclass(frozen=True)
class Latency:
    """Milliseconds a frame; the times of the forms of one model compare."""

    model: str
    form: str  # "ours": a stream; "optimized": a stream; "clip": every frame from a whole window
    size: str
    dtype: str
    device: str
    torch: str
    frames: int
    mean_ms: float
    p95_ms: float
    max_ms: float
    note: str = ""


def _frames(size: tuple[int, int], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, *size, 3)
    return list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


@dataclass(frozen=True)
class Form:
    """A way to label a video: `step` a frame, then `between` frames, which is not timed."""

    step: Callable[[Tensor], object]
    between: Callable[[], object]


def _timed(form: Form, frame: Tensor) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    form.step(frame)
    elapsed = time.perf_counter() - start
    form.between()
    return elapsed * 1e3


def _stream(model: torch.nn.Module, device: torch.device) -> Form:
    segmenter = VideoSegmenter(model)

    def between() -> None:
        segmenter.prepare()
        _synchronize(device)

    return Form(segmenter.step, between)


def _clip(model: TDNet, device: torch.device, dtype: torch.dtype) -> Form:
    """Every frame with its whole window through the network."""
    window: list[Tensor] = []

    @torch.inference_mode()
    def step(frame: Tensor) -> Tensor:
        window.append(frame.to(device).permute(2, 0, 1).to(dtype) / 255)
        del window[: -model.num_paths]
        window[:0] = window[:1] * (model.num_paths - len(window))
        return model(torch.stack(window)[None]).argmax(1).to(torch.uint8).cpu()

    return Form(step, lambda: _synchronize(device))


def _summary(times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "mean_ms": round(statistics.mean(times), 4),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 4),
        "max_ms": round(ordered[-1], 4),
    }


# Made of a model, a device and a dtype.
FORMS: dict[str, Callable[..., Form]] = {
    "ours": lambda model, device, _: _stream(model, device),
    "optimized": lambda model, device, _: _stream(optimize(model), device),
    "clip": _clip,
}


def _measure(name: str, size: str, dtype: str, options: argparse.Namespace) -> list[Latency]:
    """Of every form of a model, all in turns: a frame each."""
    device = options.device
    row = {
        "model": name,
        "size": size,
        "dtype": dtype,
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "frames": options.frames,
    }
    height, width = map(int, size.split("x"))
    frames = _frames((height, width), 3)
    names = [form for form in options.form if form != "clip" or name.startswith("td")]
    forms: dict[str, Form] = {}
    times: dict[str, list[float]] = {form: [] for form in names}
    notes: dict[str, str] = {}
    for number in range(WARM_UP + options.frames):
        for form in names:
            if form in notes:
                continue
            try:
                if form not in forms:
                    torch.manual_seed(0)
                    model = build_model(name).to(device, DTYPES[dtype]).eval()
                    model = model.to(memory_format=torch.channels_last)
                    forms[form] = FORMS[form](model, device, DTYPES[dtype])
                times[form].append(_timed(forms[form], frames[number % len(frames)]))
            except (RuntimeError, NotImplementedError) as error:
                notes[form] = str(error).splitlines()[0]
    nothing = dict.fromkeys(("mean_ms", "p95_ms", "max_ms"), float("nan"))
    return [
        Latency(**row, form=form, **nothing, note=notes[form])
        if form in notes
        else Latency(**row, form=form, **_summary(times[form][WARM_UP:]))
        for form in times
    ]


def _write(path: Path, rows: Sequence[Latency]) -> None:
    """The whole table anew, so that a stop leaves what is measured."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Latency)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    part.replace(path)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--model", nargs="+", choices=model_names(), default=list(model_names()))
    parser.add_argument("--size", nargs="+", default=list(SIZES), metavar="HxW")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float16", "float32"])
    parser.add_argument("--form", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--frames", type=int, default=60, help="timed; default: %(default)s")
    parser.add_argument("--csv", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 if a model of ours did not run."""
    options = _parse(arguments)
    rows: list[Latency] = []
    for dtype in options.dtype:
        for size in options.size:
            for name in options.model:
                for row in _measure(name, size, dtype, options):
                    rows.append(row)
                    print(
                        f"{name:12} {row.form:9} {size:10} {dtype:9} mean {row.mean_ms:8.2f}  "
                        f"95% {row.p95_ms:8.2f}  max {row.max_ms:8.2f} ms  {row.note}",
                        flush=True,
                    )
                if options.csv:
                    _write(options.csv, rows)
    return 1 if any(row.note and row.form != "clip" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
