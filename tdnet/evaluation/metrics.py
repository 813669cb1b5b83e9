"""How well label maps agree with the truth, and how sure that is.

All comes from confusion matrices of frames: `[K, K]` counts of pixels, a row a true class, a column
a predicted one. Functions that take several (`[..., K, K]`) work on the last two axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tdnet.data.palette import IGNORE_LABEL

Counts = NDArray[np.integer]
Floats = NDArray[np.float64]
LabelMap = NDArray[np.integer]

RESAMPLES = 1000
CONFIDENCE = 0.95
# Student's t of that confidence for 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def confusion_matrix(predicted: LabelMap, target: LabelMap, num_classes: int) -> NDArray[np.int64]:
    """Count the pixels of a frame by their true and their predicted class.

    Args:
        predicted: integers `[H, W]`, classes 0 to K-1.
        target: integers `[H, W]`, classes 0 to K-1, or IGNORE_LABEL where no pixel is counted.
        num_classes: K, at most 255.

    Returns:
        int64 `[K, K]`, a row a true class.

    Raises:
        ValueError: the sizes differ, or a counted pixel has another number.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted: expected {list(target.shape)} as target, got {list(predicted.shape)}"
        )
    counted = target != IGNORE_LABEL
    columns = predicted[counted].astype(np.int64)
    rows = target[counted].astype(np.int64)
    for name, numbers in (("predicted", columns), ("target", rows)):
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < num_classes:
            raise ValueError(
                f"{name}: expected classes 0 to {num_classes - 1}, "
                f"got {numbers.min()} to {numbers.max()}"
            )
    counts = np.bincount(num_classes * rows + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_iou(confusion: Counts | Floats) -> Floats:
    """Intersection over union of each class, `[..., K, K] -> [..., K]`.

    NaN for a class that the truth does not have: then its pixels, if any were predicted, count
    against the classes that are there, and it is left out of the mean. (Counted as 0 it would make
    a mean of few frames depend on which classes a model ever mentions.)
    """
    return _iou(_margins(confusion))


def mean_iou(confusion: Counts | Floats) -> Floats:
    """Mean over the classes that occur in the truth, `[..., K, K] -> [...]`; NaN if none does."""
    return _mean_of_known(class_iou(confusion))


def mean_accuracy(confusion: Counts | Floats) -> Floats:
    """Mean over the occurring classes of the share of their pixels that is right."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_of_known(_ratio(hits, confusion.sum(-1)))


def pixel_accuracy(confusion: Counts | Floats) -> Floats:
    """The share of pixels that is right, `[..., K, K] -> [...]`."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _ratio(hits.sum(-1), confusion.sum((-2, -1)))


@dataclass(frozen=True)
class Interval:
    """Where a number lies with a confidence of 95%."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Of two models on the same frames: the second's mIoU minus the first's."""

    miou: float
    interval: Interval


def miou_interval(
    confusions: Counts,
    block_length: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A 95% interval for the mIoU by the circular block bootstrap (Politis and Romano, 1992).

    Neighbouring frames of a video are alike, so that single frames drawn at random would look more
    certain than they are: blocks of consecutive frames are drawn instead. It says what other
    frames of the same videos would have given, not what other videos or another training would. A
    class that a draw lacks has the IoU of all frames in it.

    Args:
        confusions: of each frame in the order of the video, `[frames, K, K]`, or of each frame in
            several runs, `[runs, frames, K, K]`, over whose mIoU the mean is taken.
        block_length: frames a block. None: the square root of the number of frames, rounded up.
        resamples: how often frames are drawn.
        seed: of the draws.

    Raises:
        ValueError: there is no frame, no labelled pixel, or a number is out of range.
    """
    means = _resampled_mious(confusions, block_length, resamples, seed)
    return _interval(means)


def miou_difference(
    first: Counts,
    second: Counts,
    block_length: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """What the second model has more than the first, from the same draws of frames for both.

    What makes a frame easy or hard for both cancels: an interval without 0 is a difference that
    the frames suffice to show, even where the intervals of both models overlap.

    Args:
        first: confusion matrices as in `miou_interval`.
        second: those of the other model on the same frames; its number of runs may differ.
        block_length, resamples, seed: as in `miou_interval`.

    Raises:
        ValueError: as `miou_interval`, or the numbers of frames or classes differ.
    """
    if first.shape[-3:] != second.shape[-3:]:
        raise ValueError(
            f"second: expected frames and classes {list(first.shape[-3:])} as first, "
            f"got {list(second.shape[-3:])}"
        )
    draws = [
        _resampled_mious(confusions, block_length, resamples, seed)
        for confusions in (first, second)
    ]
    estimates = [float(mean_iou(confusions.sum(-3)).mean()) for confusions in (first, second)]
    return Difference(estimates[1] - estimates[0], _interval(draws[1] - draws[0]))


def training_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """What the second model has more than the first, over trainings of both with the same seeds.

    The interval is that of the mean of the paired differences by Student's t: where the difference
    of many more trainings lies, on the same frames. (Of more than ten that of ten is taken, which
    is a little wider.)

    Args:
        first: mIoU of each training.
        second: those of the other model, in the same order of the seeds.

    Raises:
        ValueError: they are fewer than two, or not as many.
    """
    if len(first) < 2 or len(second) != len(first):
        raise ValueError(
            f"second: expected as many trainings as first, 2 or more, "
            f"got {len(second)} beside {len(first)}"
        )
    differences = np.subtract(second, first)
    count = len(differences)
    student = _STUDENT[min(count - 1, len(_STUDENT)) - 1]
    half = student * differences.std(ddof=1) / math.sqrt(count)
    mean = float(differences.mean())
    return Difference(mean, Interval(float(mean - half), float(mean + half)))


def _resampled_mious(
    confusions: Counts, block_length: int | None, resamples: int, seed: int
) -> Floats:
    """The mIoU of each resample, `[resamples]`."""
    if confusions.ndim not in (3, 4) or confusions.shape[-1] != confusions.shape[-2]:
        raise ValueError(
            f"confusions: expected [frames, K, K] or [runs, frames, K, K], "
            f"got {list(confusions.shape)}"
        )
    if not confusions.sum():
        raise ValueError("confusions: expected labelled pixels, got none")
    frames, classes = confusions.shape[-3:-1]
    length = math.isqrt(frames - 1) + 1 if block_length is None else block_length
    for name, value in (("block_length", length), ("resamples", resamples)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    weights = _frame_counts(frames, length, resamples, np.random.default_rng(seed))
    counts = _margins(confusions.reshape(-1, frames, classes, classes)).astype(np.float64)
    drawn = _iou(weights @ counts)
    whole = _iou(counts.sum(-2))[:, None]
    # Else such draws would be means over other classes than the mIoU whose interval is asked for.
    return _mean_of_known(np.where(np.isnan(drawn), whole, drawn)).mean(0)


def _margins(confusion: Counts | Floats) -> NDArray[np.number]:
    """All that IoUs need, `[..., K, K] -> [3, ..., K]`: right, true and predicted pixels."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack((hits, confusion.sum(-1), confusion.sum(-2)))


def _iou(margins: NDArray[np.number]) -> Floats:
    hits, true, predicted = margins
    return _ratio(hits, np.where(true > 0, true + predicted - hits, 0))


def _frame_counts(frames: int, length: int, resamples: int, random: np.random.Generator) -> Floats:
    """How often each frame is drawn in each resample, `[resamples, frames]`.

    Blocks go round from the last frame to the first, so that every frame is as likely as others.
    """
    starts = random.integers(frames, size=(resamples, -(-frames // length), 1))
    drawn = ((starts + np.arange(length)) % frames).reshape(resamples, -1)[:, :frames]
    shifted = drawn + frames * np.arange(resamples)[:, None]
    counts = np.bincount(shifted.ravel(), minlength=resamples * frames)
    return counts.reshape(resamples, frames).astype(np.float64)


def _interval(values: Floats) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


def _ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> Floats:
    """Where the whole is 0: NaN."""
    known = whole > 0
    return np.where(known, part / np.where(known, whole, 1), np.nan)


def _mean_of_known(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
