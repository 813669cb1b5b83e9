"""What training minimises: cross entropy with the labels, and with what a teacher says (Eq. 6).

Logits are ``[B, K, H, W]``, of any float dtype; labels are ``[B, H, W]`` integers, IGNORE_LABEL
where nobody knows. Every loss is a mean over pixels, in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tdnet.data.palette import IGNORE_LABEL
from tdnet.models.layers import resize
from tdnet_ops.gradients import wide

Entropy = Callable[[Tensor, Tensor], Tensor]
Weighing = Literal["student", "teacher"]
"""Whose probabilities weigh the differences of logarithms in a KL divergence."""


def cross_entropy(logits: Tensor, labels: Tensor, pixels: float | None = None) -> Tensor:
    """The mean over labelled pixels; 0, with gradients of 0, where there is none.

    Logits of another size than the labels are resized to theirs (bilinear, align_corners=True).

    Args:
        pixels: what the sum is divided by; the number of labelled pixels if None. A part of a batch
            is given the mean number of all parts: then the mean of the parts is the batch's.

    Raises:
        ValueError: batches differ, or a label is neither a class nor IGNORE_LABEL.
    """
    losses, labelled = _cross_entropies(logits, labels)
    return losses.sum() / (labelled.sum().clamp(min=1) if pixels is None else pixels)


def hard_cross_entropy(
    logits: Tensor, labels: Tensor, *, sure: float = 0.7, least: float = 1 / 16
) -> Tensor:
    """The mean over hard pixels alone (OHEM, Shrivastava et al., CVPR 2016).

    Args:
        sure: a pixel is hard where the probability of its label is below this.
        least: the share of labelled pixels that count as hard at least: the hardest of them.

    Raises:
        ValueError: as cross_entropy, or a share or probability that is none.
    """
    for name, value in (("sure", sure), ("least", least)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}: expected a number above 0 and at most 1, got {value}")
    losses, labelled = _cross_entropies(logits, labels)
    hardest = losses[labelled].sort(descending=True).values
    hard = int((hardest > -math.log(sure)).sum())
    kept = hardest[: max(hard, int(least * len(hardest)), 1)]
    return kept.sum() / max(len(kept), 1)


def _cross_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pixel, 0 where it has no label; and which ones have one."""
    if labels.dim() != 3 or len(labels) != len(logits):
        raise ValueError(
            f"labels: expected [B, H, W] of the batch of logits {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    labels = labels.long()
    labelled = labels != IGNORE_LABEL
    classes = logits.shape[1]
    wrong = labelled & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ValueError(
            f"labels: expected 0 to {classes - 1} or {IGNORE_LABEL}, got {int(labels[wrong][0])}"
        )
    height, width = labels.shape[-2:]
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = resize(logits, (height, width))
    losses = F.cross_entropy(wide(logits), labels, ignore_index=IGNORE_LABEL, reduction="none")
    return losses, labelled


def divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, weighing: Weighing = "student"
) -> Tensor:
    """The KL divergence of the classes' probabilities, the mean over pixels.

    Args:
        student: logits.
        teacher: logits, taken as given; resized to the size of the student's.
        temperature: both logits are divided by it, and the loss multiplied by its square, so that
            gradients keep their size (Hinton et al., 2015).
        weighing: "student" is KL(student || teacher), as Eq. 6 has it; "teacher" is
            KL(teacher || student), as distillation mostly is and the published code does it.

    Raises:
        ValueError: batches or classes differ, or a temperature that is not above 0.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"teacher: expected batch and classes {list(student.shape[:2])} of the student, "
            f"got {list(teacher.shape[:2])}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    height, width = student.shape[-2:]
    teacher = teacher.detach()
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = resize(teacher, (height, width))
    of_student, of_teacher = (
        F.log_softmax(wide(x) / temperature, dim=1) for x in (student, teacher)
    )
    if weighing == "student":
        terms = of_student.exp() * (of_student - of_teacher)
    else:
        terms = of_teacher.exp() * (of_teacher - of_student)
    return terms.sum(1).mean() * temperature**2


@dataclass(frozen=True)
class Distillation:
    """The weights of Eq. 6, and what it leaves open.

    Attributes:
        whole: alpha, of KL between the whole models.
        group: beta, of KL between a path alone and the teacher's group of its number.
        own: of the cross entropy of a path alone; 0 in the paper, 0.5 in the published code.
        temperature, weighing: see `divergence`.
    """

    whole: float = 0.5
    group: float = 0.5
    own: float = 0.0
    temperature: float = 1.0
    weighing: Weighing = "student"


PAPER = Distillation()
PUBLISHED = Distillation(whole=1.0, group=0.5, own=0.5, weighing="teacher")


@dataclass(frozen=True)
class Opinions:
    """Logits of the whole model, pi(V') or pi(sum f), and of one group, pi(V_i) or pi(f_i).

    ``group`` is None where a model has no groups.
    """

    whole: Tensor
    group: Tensor | None = None


def distillation_loss(
    student: Opinions,
    teacher: Opinions | None,
    labels: Tensor,
    form: Distillation = PAPER,
    entropy: Entropy = cross_entropy,
) -> Tensor:
    """Eq. 6: cross entropy, and the divergences from the teacher as a whole and group by group.

    Where the teacher's reduction cannot be split, its group is None and the third term left out.

    Args:
        teacher: None leaves both divergences out.
        entropy: of logits and labels, in place of `cross_entropy`.

    Raises:
        ValueError: as `cross_entropy` and `divergence`.
    """
    diverge = partial(divergence, temperature=form.temperature, weighing=form.weighing)
    loss = entropy(student.whole, labels)
    if teacher is not None and form.whole:
        loss = loss + form.whole * diverge(student.whole, teacher.whole)
    if student.group is None:
        return loss
    if teacher is not None and form.group and teacher.group is not None:
        loss = loss + form.group * diverge(student.group, teacher.group)
    if form.own:
        loss = loss + form.own * entropy(student.group, labels)
    return loss
