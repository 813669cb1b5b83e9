"""What `tdnet segment` does once its options are parsed."""

import re
import signal
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from tdnet.checkpoints import load_checkpoint
from tdnet.cli.options import SegmentOptions
from tdnet.cli.progress import progress_bar
from tdnet.cli.terminal import say
from tdnet.data.synthetic import FRAME_RATE, street_clip
from tdnet.engine import optimize
from tdnet.models import build_model
from tdnet.streaming import VideoSegmenter
from tdnet.video import (
    FrameSegmenter,
    FrameSource,
    FrameWriter,
    ImageSequence,
    InterruptFlag,
    VideoError,
    open_source,
    open_writer,
    segment_frames,
)
from tdnet_ops.info import describe

DEMO_FRAMES = 24
DEMO_SIZE = (256, 512)

FAILED = 1
INTERRUPTED = 128  # plus the number of the signal, as shells report it

RANDOM_WEIGHTS_NOTICE = (
    "The weights are random (no --checkpoint was given): the colours mean nothing, "
    "only the speed and the file are real."
)


def segment_to_file(options: SegmentOptions) -> int:
    """Segment what the options name, saying on stderr what goes wrong, and return the exit code.

    Whatever happens, the frames finished before it are kept as a whole file.
    """
    try:
        size = None if options.size is None else parse_size(options.size)
        source = _open_source(options)
        _refuse_same_file(options)
        device = parse_device(options.device)
        writer = open_writer(options.output, source, options.alpha)
    except (VideoError, ValueError, RuntimeError, OSError) as error:
        return fail(error)
    return segment_source(source, writer, lambda: _segmenter(options, size, device), str(device))


def segment_source(
    source: FrameSource,
    writer: FrameWriter,
    make_segmenter: Callable[[], FrameSegmenter],
    device: str,
) -> int:
    """Segment a source into a writer with progress, and return the exit code.

    Args:
        source: the frames.
        writer: where they go; finished and closed here.
        make_segmenter: called once, after Ctrl-C is in hand.
        device: the torch device, for the report.
    """
    latencies: list[float] = []
    failure: Exception | None = None
    with InterruptFlag() as flag:
        try:
            with writer, progress_bar(Path(source.label).name, source.frame_count) as progress:
                segment_frames(
                    source,
                    make_segmenter(),
                    writer,
                    latencies,
                    lambda: flag.signal is not None,
                    progress.advance,
                )
                # The number of frames in a container is often an estimate.
                if flag.signal is None:
                    progress.finish(writer.frames_written)
        except Exception as error:
            failure = error
        return _report(writer, latencies, device, failure, flag.signal)


def _report(
    writer: FrameWriter,
    latencies: list[float],
    device: str,
    failure: Exception | None,
    end_request: signal.Signals | None,
) -> int:
    """Say what was made and what went wrong, and return the exit code."""
    kept = writer.frames_written
    if kept:
        say(f"{kept} frames in {writer.path}")
        say(latency_report(latencies))
        say(f"backend: {describe(device)}")
    if failure is not None:
        return fail(failure, f"the {kept} finished frames are in {writer.path}" if kept else None)
    if end_request is not None:
        say(f"tdnet: interrupted ({end_request.name}) after {kept} frames", sys.stderr)
        return INTERRUPTED + end_request
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "HxW".

    Raises:
        ValueError: the text is not two positive integers with an x between them.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", text)
    if match is None:
        raise ValueError(f"--size: expected HEIGHTxWIDTH such as 769x1537, got {text!r}")
    return int(match[1]), int(match[2])


def latency_report(latencies: list[float]) -> str:
    """Mean, 95th percentile and maximum of latencies in seconds, as one line in milliseconds."""
    milliseconds = 1e3 * np.array(latencies)
    return (
        f"latency per frame: mean {milliseconds.mean():.1f} ms, "
        f"p95 {np.percentile(milliseconds, 95):.1f} ms, max {milliseconds.max():.1f} ms"
    )


def _open_source(options: SegmentOptions) -> FrameSource:
    if options.video is not None:
        return open_source(options.video, Fraction(options.frame_rate).limit_denominator(1001))
    images = (frame.image for frame in street_clip(DEMO_FRAMES, DEMO_SIZE))
    return ImageSequence(images, DEMO_FRAMES, Fraction(FRAME_RATE), "synthetic street clip")


def _refuse_same_file(options: SegmentOptions) -> None:
    output = Path(options.output)
    if options.video is None or not output.exists() or not Path(options.video).exists():
        return
    if output.samefile(options.video):
        raise VideoError(f"{options.output}: the output would replace the input")


def parse_device(name: str | None) -> torch.device:
    """The device of a name; of None a GPU, if there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "meta":
        raise ValueError(f"--device: expected cpu, cuda, cuda:1 or alike, got {name!r}")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"--device {name}: this torch ({torch.__version__}) finds {found} GPUs")
    return device


def _segmenter(
    options: SegmentOptions, size: tuple[int, int] | None, device: torch.device
) -> VideoSegmenter:
    if options.checkpoint is not None:
        model = load_checkpoint(options.checkpoint, options.model, device=device)
    else:
        say(RANDOM_WEIGHTS_NOTICE, sys.stderr)
        assert options.model is not None
        torch.manual_seed(0)
        model = build_model(options.model, options.num_classes).to(device)
    return VideoSegmenter(optimize(model), size)


def fail(error: Exception, kept: str | None = None) -> int:
    """Say in one line what went wrong, and what is kept nevertheless."""
    message = str(error).strip()
    if not isinstance(error, VideoError):  # whose messages are one line, names of any kind in it
        message = next(iter(message.splitlines()), "")
    plain = (VideoError, ValueError, RuntimeError, OSError, ImportError)
    if not isinstance(error, plain) or not message:
        message = f"{type(error).__name__}: {message}"
    say(f"tdnet: error: {message}" + (f"; {kept}" if kept else ""), sys.stderr)
    return FAILED
