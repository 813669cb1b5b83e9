"""How steady the labels of a video are.

TC, "temporal consistency", as in the code of Liu et al. (Efficient Semantic Video Segmentation with
Per-frame Inference, ECCV 2020): the labels of frame t+1, carried back to frame t by optical flow,
against those of frame t; the IoU of each class over all pairs of frames, and its mean. Four things
differ from that code, so its numbers are near but not equal: the flow is OpenCV's DIS in place of
FlowNet2 ("TC (DIS)"), labels are carried from the nearest pixel (that code interpolates between the
numbers of classes), what leaves the frame is not compared (that code repeats the border), and
classes that do not occur are left out of the mean (that code counts them as 0).

VC, "video consistency", as in the code of Miao et al. (VSPW, CVPR 2021): over windows of n frames,
of the pixels whose true label is the same in all frames the share whose predicted label is the
same in all; right or wrong, which that code does not ask. `VideoConsistency` also has the share
that is steady and right. (That code leaves the last window of a clip out, this does not.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tdnet.data.dis import ForwardFlow
from tdnet.data.palette import IGNORE_LABEL
from tdnet.evaluation.metrics import LabelMap, confusion_matrix, mean_iou

Mask = NDArray[np.bool_]

# Of the forward-backward check of Sundaram et al. (ECCV 2010).
_RELATIVE_ERROR, _ABSOLUTE_ERROR = 0.01, 0.5


def visible(flow: ForwardFlow, backward: ForwardFlow) -> Mask:
    """Pixels that are seen in the next frame too: flow there and back ends where it began.

    Args:
        flow: from the frame to the next one, `[H, W, 2]`.
        backward: from the next one to the frame.

    Returns:
        bool `[H, W]`, by the criterion of Sundaram et al. (ECCV 2010).
    """
    rows, columns, inside = _targets(flow)
    back = backward[rows, columns]
    error = ((flow + back) ** 2).sum(-1)
    length = (flow**2).sum(-1) + (back**2).sum(-1)
    return inside & (error <= _RELATIVE_ERROR * length + _ABSOLUTE_ERROR)


def carried_back(next_labels: LabelMap, flow: ForwardFlow) -> LabelMap:
    """The labels of the next frame where the flow says that pixels of this frame went.

    Args:
        next_labels: integers `[H, W]`.
        flow: from this frame to the next, `[H, W, 2]`.

    Returns:
        integers `[H, W]` of the nearest pixels; IGNORE_LABEL for what leaves the frame.

    Raises:
        ValueError: the sizes differ.
    """
    if flow.shape != (*next_labels.shape, 2):
        raise ValueError(
            f"flow: expected {[*next_labels.shape, 2]} as the labels, got {list(flow.shape)}"
        )
    rows, columns, inside = _targets(flow)
    return np.where(inside, next_labels[rows, columns], IGNORE_LABEL)


def _targets(flow: ForwardFlow) -> tuple[NDArray[np.intp], NDArray[np.intp], Mask]:
    """Row and column of the nearest pixel in the next frame, within it, and whether it was so."""
    height, width = flow.shape[:2]
    columns = np.rint(np.arange(width) + flow[..., 0]).astype(np.intp)
    rows = np.rint(np.arange(height)[:, None] + flow[..., 1]).astype(np.intp)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return rows.clip(0, height - 1), columns.clip(0, width - 1), inside


def agreement(
    labels: LabelMap,
    next_labels: LabelMap,
    flow: ForwardFlow,
    num_classes: int,
    seen: Mask | None = None,
) -> NDArray[np.int64]:
    """Pixels of a pair of frames by their label and by that which the flow carries back to them.

    Args:
        labels: predicted classes of a frame, `[H, W]`.
        next_labels: those of the next frame.
        flow: from the frame to the next one, `[H, W, 2]`.
        num_classes: K.
        seen: which pixels count, `[H, W]`, as from `visible`. None: all.

    Returns:
        int64 `[K, K]`, a row a class of this frame. TC is the mean IoU of the sum over pairs.

    Raises:
        ValueError: sizes differ.
    """
    back = carried_back(next_labels, flow)
    counted = back != IGNORE_LABEL
    if seen is not None:
        counted &= seen
    # The label map of this frame stands for the truth, without what is not compared.
    return confusion_matrix(back, np.where(counted, labels, IGNORE_LABEL), num_classes)


def temporal_consistency(
    labels: Sequence[LabelMap],
    flows: Iterable[ForwardFlow],
    num_classes: int,
    seen: Iterable[Mask] | None = None,
) -> float:
    """TC of one video.

    Args:
        labels: predicted classes of each frame, `[H, W]`, two frames or more.
        flows: from each frame to the next, one less than frames: exact ones, or from `dis_flow`.
        num_classes: K, at most 255.
        seen: which pixels of each frame are seen in the next one too (one less than frames).
            None: all, as Liu et al. count.

    Returns:
        0 to 1.

    Raises:
        ValueError: there are fewer than two frames, or numbers of frames or sizes differ.
    """
    if len(labels) < 2:
        raise ValueError(f"labels: expected 2 frames or more, got {len(labels)}")
    masks = itertools.repeat(None, len(labels) - 1) if seen is None else seen
    total = np.zeros((num_classes, num_classes), np.int64)
    for now, after, flow, mask in zip(labels[:-1], labels[1:], flows, masks, strict=True):
        total += agreement(now, after, flow, num_classes, mask)
    return float(mean_iou(total))


class VideoConsistency:
    """VC of windows of n frames, frame by frame.

    Attributes:
        steady: of each window so far that has a pixel whose true label stays: the share of such
            pixels whose prediction stays too. Ignored pixels count as a label like others, as in
            VSPW's code. VC is the mean.
        steady_and_right: the same without ignored pixels, the prediction being the true label.
    """

    def __init__(self, window: int) -> None:
        """Count windows of so many frames.

        Raises:
            ValueError: window is below 2.
        """
        if window < 2:
            raise ValueError(f"window: expected 2 frames or more, got {window}")
        self.window = window
        self.steady: list[float] = []
        self.steady_and_right: list[float] = []
        self.start()

    def start(self) -> None:
        """The next frame is the first of another clip."""
        self._predicted, self._target = _Steadiness(), _Steadiness()

    def add(self, predicted: LabelMap, target: LabelMap) -> None:
        """Count the window that ends with this frame, if there are enough before it.

        Args:
            predicted: classes, `[H, W]`.
            target: true classes, `[H, W]`, or IGNORE_LABEL.

        Raises:
            ValueError: the sizes differ.
        """
        if predicted.shape != target.shape:
            raise ValueError(
                f"predicted: expected {list(target.shape)} as target, got {list(predicted.shape)}"
            )
        stays = self._predicted.add(predicted) >= self.window
        true_stays = self._target.add(target) >= self.window
        if true_stays.any():
            self.steady.append(float(stays[true_stays].mean()))
        known = true_stays & (target != IGNORE_LABEL)
        if known.any():
            right = stays & (predicted == target)
            self.steady_and_right.append(float(right[known].mean()))


class _Steadiness:
    """For how many frames each pixel has had the label that it has, `[H, W]`."""

    def __init__(self) -> None:
        self._labels: LabelMap | None = None
        self._frames: NDArray[np.int32] | None = None

    def add(self, labels: LabelMap) -> NDArray[np.int32]:
        if self._labels is None or self._frames is None:
            self._frames = np.ones(labels.shape, np.int32)
        else:
            self._frames = np.where(labels == self._labels, self._frames + 1, 1).astype(np.int32)
        self._labels = labels
        return self._frames
