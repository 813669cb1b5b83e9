"""A model on labelled videos, as a stream: accuracy, steadiness and latency in one pass.

Frames with too few frames before them in their stream, as its first m-1, are labelled from V_t
alone, and scored: `Evaluation.settled_frames` says how many of the scored ones had a full past. It
falls as the gap grows.

As in Sec. 5.1 of the paper the numbers are means over all orders of the sub-networks (the m paths
that the first frame of a stream may take), and labels are compared at the resolution of the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tdnet.architectures import Size, check_among
from tdnet.data.clips import Clip, LabelledFrame, LabelledVideos, read_labels
from tdnet.data.dis import ForwardFlow, Frame, dis_flow, load_opencv
from tdnet.data.palette import IGNORE_LABEL
from tdnet.evaluation.consistency import Mask, VideoConsistency, agreement, visible
from tdnet.evaluation.metrics import (
    LabelMap,
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    miou_interval,
    pixel_accuracy,
)
from tdnet.evaluation.results import Evaluation, Latency, SteadyShare
from tdnet.models.stream import StreamingModel
from tdnet.streaming import VideoSegmenter
from tdnet.video.images import read_image
from tdnet_ops.info import describe

Orders = Literal["all", "first"]
FlowEstimator = Callable[[Frame, Frame], ForwardFlow]
"""Two frames to the flow from the first to the second, as `dis_flow`."""

VC_WINDOWS = (8, 16)


def evaluate(
    model: StreamingModel,
    videos: LabelledVideos,
    *,
    size: Size | None = None,
    gap: int = 1,
    orders: Orders = "all",
    flow: FlowEstimator | None = dis_flow,
    data: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure a model on labelled videos.

    Args:
        model: that of a `VideoSegmenter`; it is put in eval mode.
        videos: with as many classes as the model has.
        size: (height, width) that frames are resized to before they enter the network.
        gap: the network sees every gap-th frame, as in Fig. 6(b): a clip becomes `gap` streams, so
            that every labelled frame is scored whatever the gap. The first m-1 of each stream are
            labelled from V_t alone.
        orders: "all" runs each stream m times, from each path on (once if all paths share one
            sub-network); "first" from path 0 alone.
        flow: for TC. None leaves TC out.
        data: what the result calls the videos.
        progress: called after each frame with how many are done, and how many there are.

    Raises:
        ValueError: the model has other classes, no pixel is labelled, gap or orders is out of
            range, or a label map does not hold 8 bits a pixel.
        VideoError: an image cannot be read.
        ImportError: TC is asked for without OpenCV.
    """
    check_among("orders", orders, get_args(Orders))
    num_classes, num_paths = model.config.num_classes, model.config.num_paths
    if len(videos.class_names) != num_classes:
        raise ValueError(
            f"videos: expected {num_classes} classes as the model, got {len(videos.class_names)}"
        )
    streams = streams_of(videos.clips, num_paths, gap)
    if not streams:
        raise ValueError("videos: expected labelled frames, got none")
    table = np.array(videos.class_table(), np.uint8)
    if not _has_labelled_pixels(videos, table):
        where = f" in {data}" if data else ""
        raise ValueError(f"videos: expected labelled pixels, got none{where}")
    if flow is dis_flow and any(s.is_whole and len(s.frames) > 1 for s in streams):
        load_opencv()  # sooner than in the middle of the run
    starts = range(num_paths if orders == "all" and not model.config.shared else 1)
    runs = [_Run(VideoSegmenter(model, size), start, num_classes) for start in starts]
    _warm_up(VideoSegmenter(model, size), streams[0].frames[0], num_paths + 1)
    total = sum(len(stream.frames) for stream in streams)
    steps = _steps(streams, table, flow, _surviving_paths(model))
    for done, step in enumerate(steps, start=1):
        for run in runs:
            run.step(step)
        progress(done, total)
    scored = [f.image for clip in videos.clips for f in clip if f.labels is not None]
    return _evaluation(model, videos, runs, scored, size, gap, data)


def _has_labelled_pixels(videos: LabelledVideos, table: NDArray[np.uint8]) -> bool:
    """Reads label maps until one has some: as a rule a single one."""
    return any(
        (read_labels(frame.labels, table) != IGNORE_LABEL).any()
        for clip in videos.clips
        for frame in clip
        if frame.labels is not None
    )


def _surviving_paths(model: StreamingModel) -> int:
    """How many frames labels are made of, the current one included."""
    return int(getattr(model, "surviving_paths", model.config.num_paths))


@dataclass(frozen=True)
class StreamedClip:
    """Frames that a model sees one after another from a fresh start.

    Those without labels are seen and not scored. is_whole: they are all of a clip, or every
    gap-th, so that the steadiness of their labels can be measured.
    """

    frames: Clip
    is_whole: bool


def streams_of(clips: Iterable[Clip], num_paths: int, gap: int = 1) -> list[StreamedClip]:
    """What a model of so many paths has to see so that each labelled frame is scored once.

    A clip of which half of the frames or more are labelled is streamed whole. Of others (in
    Cityscapes one frame in thirty is labelled) each labelled frame is the last of a window of
    num_paths frames, fewer at the start of a clip.

    Raises:
        ValueError: gap is below 1.
    """
    if gap < 1:
        raise ValueError(f"gap: expected at least 1, got {gap}")
    streams = []
    for clip in clips:
        labelled = [index for index, frame in enumerate(clip) if frame.labels is not None]
        if labelled and 2 * len(labelled) >= len(clip):
            phases = range(min(gap, len(clip)))
            streams += [StreamedClip(clip[phase::gap], True) for phase in phases]
        else:
            streams += [StreamedClip(_window(clip, i, num_paths, gap), False) for i in labelled]
    return streams


def _window(clip: Clip, last: int, length: int, gap: int) -> Clip:
    before = [last - age * gap for age in range(length - 1, 0, -1)]
    return (*(LabelledFrame(clip[i].image) for i in before if i >= 0), clip[last])


@dataclass(frozen=True)
class _Step:
    """A frame of a stream with all that a run needs to count it."""

    frame: LabelledFrame
    image: Frame
    target: LabelMap | None
    is_first: bool
    is_settled: bool  # as many frames are before it as its labels are made of
    is_whole: bool
    # From the frame before, and which of its pixels are seen here.
    flow: tuple[ForwardFlow, Mask] | None


def _steps(
    streams: Iterable[StreamedClip],
    table: NDArray[np.uint8],
    estimate: FlowEstimator | None,
    surviving_paths: int,
) -> Iterator[_Step]:
    for stream in streams:
        previous: Frame | None = None
        for position, frame in enumerate(stream.frames):
            image = read_image(frame.image)
            flow = None
            if stream.is_whole and estimate is not None and previous is not None:
                forward = estimate(previous, image)
                flow = (forward, visible(forward, estimate(image, previous)))
            target = None if frame.labels is None else read_labels(frame.labels, table)
            is_settled = position >= surviving_paths - 1
            yield _Step(frame, image, target, previous is None, is_settled, stream.is_whole, flow)
            previous = image


class _Run:
    """One order of the paths: a segmenter, and what was counted of its labels."""

    def __init__(self, segmenter: VideoSegmenter, path: int, num_classes: int) -> None:
        self.confusions: dict[Path, NDArray[np.int64]] = {}
        self.agreement = np.zeros((num_classes, num_classes), np.int64)
        self.agreement_seen = np.zeros_like(self.agreement)
        self.pairs = 0
        self.vc = [VideoConsistency(window) for window in VC_WINDOWS]
        self.latencies: list[float] = []
        self.settled_frames = 0
        self._segmenter = segmenter
        self._path = path
        self._num_classes = num_classes
        self._previous: LabelMap | None = None

    def step(self, step: _Step) -> None:
        if step.is_first:
            self._segmenter.reset(self._path)
            for vc in self.vc:
                vc.start()
        begin = time.perf_counter()
        labels = self._segmenter.step(step.image)
        seconds = time.perf_counter() - begin
        _prepare(self._segmenter)
        if step.is_settled:
            self.latencies.append(seconds)
        if step.flow is not None and self._previous is not None:
            self._count_pair(self._previous, labels, *step.flow)
        self._previous = labels
        self._score(step, labels)

    def _count_pair(
        self, previous: LabelMap, labels: LabelMap, flow: ForwardFlow, seen: Mask
    ) -> None:
        self.pairs += 1
        self.agreement += agreement(previous, labels, flow, self._num_classes)
        self.agreement_seen += agreement(previous, labels, flow, self._num_classes, seen)

    def _score(self, step: _Step, labels: LabelMap) -> None:
        if step.target is None:
            # A window of VC has the truth of all its frames.
            for vc in self.vc:
                vc.start()
            return
        labels = _resized(labels, step.target.shape)
        counts = confusion_matrix(labels, step.target, self._num_classes)
        self.confusions[step.frame.image] = counts
        self.settled_frames += step.is_settled
        if step.is_whole:
            for vc in self.vc:
                vc.add(labels, step.target)


def _prepare(segmenter: VideoSegmenter) -> None:
    """What a stream does between two frames, none of which waits for it here."""
    segmenter.prepare()
    device = next(segmenter.model.parameters()).device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _warm_up(segmenter: VideoSegmenter, frame: LabelledFrame, count: int) -> None:
    """The first frames of a process choose kernels and take memory, which no stream would."""
    image = read_image(frame.image)
    for _ in range(count):
        segmenter.step(image)
        _prepare(segmenter)


def _resized(labels: LabelMap, shape: tuple[int, ...]) -> LabelMap:
    """Labels at the truth's size, from the nearest pixels."""
    if labels.shape == shape:
        return labels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for old, new in zip(labels.shape, shape, strict=True)
    )
    return labels[rows[:, None], columns]


def _evaluation(
    model: StreamingModel,
    videos: LabelledVideos,
    runs: list[_Run],
    scored: list[Path],
    size: Size | None,
    gap: int,
    data: str,
) -> Evaluation:
    confusions = np.array([[run.confusions[path] for path in scored] for run in runs])
    sums = confusions.sum(1)
    latencies = [seconds for run in runs for seconds in run.latencies]
    has_pairs = runs[0].pairs > 0
    return Evaluation(
        model=model.config.name,
        data=data,
        class_names=videos.class_names,
        size=size,
        gap=gap,
        frames=len(scored),
        miou=_mean(mean_iou(sums)),
        miou_interval=miou_interval(confusions),
        miou_of_orders=tuple(mean_iou(sums).tolist()),
        mean_accuracy=_mean(mean_accuracy(sums)),
        pixel_accuracy=_mean(pixel_accuracy(sums)),
        class_iou=tuple(None if np.isnan(x) else float(x) for x in class_iou(sums).mean(0)),
        tc=_mean([mean_iou(run.agreement) for run in runs]) if has_pairs else None,
        tc_seen=_mean([mean_iou(run.agreement_seen) for run in runs]) if has_pairs else None,
        vc=tuple(_steady_share(same) for same in zip(*(run.vc for run in runs), strict=True)),
        latency=_latency(latencies),
        backend=describe(str(next(model.parameters()).device)),
        confusions=confusions.astype(np.int32),
        config=model.config,
        surviving_paths=_surviving_paths(model),
        settled_frames=runs[0].settled_frames,
    )


def _mean(values: NDArray[np.float64] | list[NDArray[np.float64]]) -> float:
    return float(np.mean(values))


def _steady_share(found: Sequence[VideoConsistency]) -> SteadyShare:
    steady = [share for vc in found for share in vc.steady]
    right = [share for vc in found for share in vc.steady_and_right]
    return SteadyShare(
        window=found[0].window,
        windows=len(found[0].steady),
        steady=float(np.mean(steady)) if steady else None,
        steady_and_right=float(np.mean(right)) if right else None,
    )


def _latency(seconds: list[float]) -> Latency | None:
    if not seconds:
        return None
    milliseconds = 1e3 * np.array(seconds)
    p95 = float(np.percentile(milliseconds, 95))
    return Latency(float(milliseconds.mean()), p95, float(milliseconds.max()), len(seconds))
