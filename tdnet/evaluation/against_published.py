"""Compare our logits with those of the published code, frame by frame, with the same weights.

    python -m tdnet.evaluation.against_published --code PATH --model td4-psp18 --frames DIR

PATH is a checkout of the published TDNet code (github.com/feinanshan/TDNet), DIR a folder of
images that sort in the order of the video. Without a checkpoint the weights are random, the
BatchNorm statistics and the LayerNorm affine too, so that no layer is an identity. The exit code is
1 if a frame differs by more than 1e-4 of its largest logit. Both are timed, in turns: from an image
to its logits, on as many threads.
"""

import importlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn

from tdnet.checkpoints import from_published
from tdnet.engine import optimize
from tdnet.models.layers import resize
from tdnet.models.tdnet import TDNet
from tdnet.preprocessing import images_of
from tdnet.streaming import VideoSegmenter

TOLERANCE = 1e-4

# Our names of the models: (module, class, arguments) of the published code.
_PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "td4-psp18": ("td4_psp18", {"path_num": 4}),
    "td2-psp50": ("td2_psp50", {"path_num": 2}),
    "pspnet-18": ("pspnet", {"backbone": "resnet18"}),
    "pspnet-50": ("pspnet", {"backbone": "resnet50"}),
    "pspnet-101": ("pspnet", {"backbone": "resnet101"}),
}
_ALIASES = {"psp101": "pspnet-101"}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}


def published_model(code: Path, name: str, num_classes: int = 19) -> nn.Module:
    """Build a model with the published code.

    Args:
        code: a checkout of it; its folder ``Testing`` or the checkout itself.
        name: one of our names of the models.

    Raises:
        ValueError: if the name is unknown or the code is not there.
    """
    name = _ALIASES.get(name, name)
    if name not in _PUBLISHED:
        raise ValueError(
            f"model: expected one of {', '.join([*_PUBLISHED, *_ALIASES])}, got {name!r}"
        )
    root = code / "Testing" if (code / "Testing").is_dir() else code
    if not (root / "model" / "pspnet").is_dir():
        raise ValueError(f"code: expected a checkout with Testing/model/pspnet, got {code}")
    class_name, arguments = _PUBLISHED[name]
    sys.path.insert(0, str(root))
    try:
        module = importlib.import_module(f"model.pspnet.{class_name}")
    finally:
        sys.path.remove(str(root))
    model = getattr(module, class_name)(nclass=num_classes, **arguments)
    assert isinstance(model, nn.Module)
    return model.eval()


@torch.inference_mode()
def randomise(model: nn.Module, frames: Iterable[Tensor], seed: int) -> None:
    """Give a published model random weights under which every layer counts, in place.

    BatchNorm gets statistics near those of ``frames`` (one for each path, ``[1, 3, H, W]``), as
    after training, and queries and keys are enlarged: otherwise random features are nearly the
    same everywhere, the attention is uniform, and the spatial LayerNorm removes what it adds. The
    model remembers the frames: move its weights to a fresh one.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: torch.Size, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    def calibrate(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        assert module.running_mean is not None
        assert module.running_var is not None
        shape = module.weight.shape
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        module.running_mean.copy_(mean + variance.sqrt() * uniform(shape, -0.1, 0.1))
        module.running_var.copy_(variance * uniform(shape, 0.5, 1.5) + 0.1)

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # The last one of a bottleneck is small, as in trained networks: with strong residual
            # branches a random ResNet-101 amplifies float32 rounding beyond the tolerance.
            low, high = (0.1, 0.3) if name.endswith("bn3") else (0.3, 1.0)
            module.weight.copy_(uniform(module.weight.shape, low, high))
            module.bias.copy_(uniform(module.bias.shape, -0.2, 0.2))
            hooks.append(module.register_forward_pre_hook(calibrate))
        elif isinstance(module, nn.LayerNorm):
            module.weight.copy_(uniform(module.weight.shape, 0.5, 1.5))
            module.bias.copy_(uniform(module.bias.shape, -0.5, 0.5))
        elif isinstance(module, nn.Conv2d):
            enlarged = ".w_qs.1" in name or ".w_ks.1" in name
            bound = (3.0 if enlarged else 1.0) * (3 / module.weight[0].numel()) ** 0.5
            module.weight.copy_(uniform(module.weight.shape, -bound, bound))
            if module.bias is not None:
                module.bias.copy_(uniform(module.bias.shape, -0.2, 0.2))
    for index, frame in enumerate(frames):
        model(frame, pos_id=index)
    for hook in hooks:
        hook.remove()


def read_frames(folder: Path, size: tuple[int, int], limit: int | None) -> Iterator[Tensor]:
    """Yield the images of a folder, by name, as normalised ``[1, 3, H, W]`` at ``size``."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"frames: expected a folder of images, got no images in {folder}")
    for path in paths[:limit]:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
        yield images_of(pixels[None], size)


@dataclass(frozen=True)
class Compared:
    """One frame: max|a-b| / max|b| of our logits a and theirs b, and the seconds of both."""

    difference: float
    theirs: float
    ours: float


@torch.inference_mode()
def compare(
    published: nn.Module, name: str, frames: Iterable[Tensor], optimized: bool = False
) -> Iterator[Compared]:
    """Feed the frames to the published model and to ours with its weights.

    Args:
        name: one of our names of the models.
        frames: normalised images ``[1, 3, H, W]``.
        optimized: whether ours is what `tdnet.optimize` makes of it.
    """
    model = from_published(published.state_dict(), name)
    segmenter = VideoSegmenter(optimize(model) if optimized else model)
    num_paths = path_count(published)
    for index, image in enumerate(frames):
        start = time.perf_counter()
        expected = published(image, pos_id=index % num_paths)
        between = time.perf_counter()
        logits = segmenter.logits(image)
        segmenter.prepare()
        end = time.perf_counter()
        difference = relative_difference(logits, expected)
        yield Compared(
            math.inf if math.isnan(difference) else difference, between - start, end - between
        )


def times_as_fast(frames: Sequence[Compared], num_paths: int) -> str:
    """Medians over the frames that have a past; nothing without such."""
    settled = frames[num_paths:]
    if not settled:
        return ""
    theirs, ours = (
        statistics.median(getattr(frame, who) for frame in settled) for who in ("theirs", "ours")
    )
    return (
        f"a frame: published {1e3 * theirs:,.0f} ms, ours {1e3 * ours:,.0f} ms, "
        f"{theirs / ours:.2f}x, medians of {len(settled)}"
    )


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """max|got - expected| / max|expected|."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def path_count(published: nn.Module) -> int:
    """The number of paths m of a published model, 1 for a PSPNet."""
    return int(getattr(published, "path_num", 1))


@torch.inference_mode()
def weight_of_the_past(published: nn.Module, name: str, frames: Sequence[Tensor]) -> float:
    """How much the logits of the last frame change if it is segmented from V_t alone.

    The difference of two implementations means something only if this is much larger.
    """
    model = from_published(published.state_dict(), name)
    if not isinstance(model, TDNet) or len(frames) < model.num_paths:
        return 0.0
    clip = torch.stack(list(frames[-model.num_paths :]), dim=1)
    path = (len(frames) - 1) % model.num_paths
    alone = model.decode(model.encode(frames[-1], path), None, path)
    height, width = frames[-1].shape[-2:]
    return relative_difference(resize(alone, (height, width)), model(clip, path))


def main(
    code: Annotated[Path, typer.Option(help="Checkout of the published code.", exists=True)],
    frames: Annotated[Path, typer.Option(help="Folder of images.", exists=True, file_okay=False)],
    model: Annotated[str, typer.Option(help="td4-psp18, td2-psp50, psp101, ...")] = "td4-psp18",
    size: Annotated[
        str, typer.Option(help="Network input, HxW; TDNets of the published code take no other.")
    ] = "769x1537",
    frames_limit: Annotated[int | None, typer.Option(min=1, help="Use so many frames.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Published weights; random ones if not given.", exists=True)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    optimized: Annotated[bool, typer.Option(help="Compare what tdnet.optimize makes.")] = False,
) -> None:
    """Compare our logits with the published code's, frame by frame."""
    try:
        name = _ALIASES.get(model, model)
        published = published_model(code, name)
        images = list(read_frames(frames, _parse_size(size), frames_limit))
        if checkpoint is None:
            template = published_model(code, name)
            randomise(
                template, itertools.islice(itertools.cycle(images), path_count(template)), seed
            )
            published.load_state_dict(template.state_dict())
        else:
            _load_published(published, checkpoint)
        compared = []
        for frame in compare(published, name, images, optimized):
            compared.append(frame)
            typer.echo(f"frame {len(compared):3d}: {frame.difference:.3g}")
        past = weight_of_the_past(published, name, images)
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if past > 0:
        typer.echo(f"for scale: from its own features alone the last frame differs by {past:.3g}")
    if speed := times_as_fast(compared, path_count(published)):
        typer.echo(speed)
    largest = max(frame.difference for frame in compared)
    equal = largest <= TOLERANCE
    typer.echo(
        f"{name} at {size}: largest difference {largest:.3g}, "
        f"{'within' if equal else 'ABOVE'} {TOLERANCE:g}"
    )
    raise typer.Exit(0 if equal else 1)


def _load_published(model: nn.Module, checkpoint: Path) -> None:
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = content.get("model_state", content)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = model.state_dict()
    model.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"size: expected HxW, as in 769x1537, got {text!r}")
    return int(parts[0]), int(parts[1])


if __name__ == "__main__":
    typer.run(main)
