"""Losses against NumPy, pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from tdnet.training.losses import (
    PAPER,
    PUBLISHED,
    Distillation,
    Opinions,
    cross_entropy,
    distillation_loss,
    divergence,
    hard_cross_entropy,
)

CLASSES, SIZE = 5, (4, 6)


def logits(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, CLASSES, *SIZE, generator=generator, dtype=torch.float64).to(dtype) * 3


def some_labels():
    labels = torch.randint(0, CLASSES, (2, *SIZE), generator=torch.Generator().manual_seed(9))
    labels[0, 1:3, 2:5] = 255
    return labels


def probabilities(x):
    e = np.exp(x.numpy() - x.numpy().max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def entropies_of_labels(x, labels):
    """-log of the probability of each label, in the order of the pixels, without the ignored."""
    p = probabilities(x)
    return [
        -math.log(p[b, labels[b, i, j], i, j])
        for b in range(2)
        for i in range(SIZE[0])
        for j in range(SIZE[1])
        if labels[b, i, j] != 255
    ]


def kl(p, q):
    """The sum over classes, the mean over pixels."""
    return float((p * np.log(p / q)).sum(1).mean())


def test_cross_entropy():
    expected = np.mean(entropies_of_labels(logits(1), some_labels()))
    assert float(cross_entropy(logits(1), some_labels())) == pytest.approx(expected)
    as_bytes = some_labels().to(torch.uint8)
    assert float(cross_entropy(logits(1), as_bytes)) == pytest.approx(expected)


def test_nothing_labelled_teaches_nothing():
    x = logits(1).requires_grad_()
    loss = cross_entropy(x, torch.full((2, *SIZE), 255))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert hard_cross_entropy(x, torch.full((2, *SIZE), 255)) == 0


def test_coarse_logits_are_resized():
    labels = some_labels()[:, :1].repeat_interleave(7, 1)
    x = logits(1)
    fine = torch.nn.functional.interpolate(x, (7, 6), mode="bilinear", align_corners=True)
    assert float(cross_entropy(x, labels)) == pytest.approx(float(cross_entropy(fine, labels)))


def test_half_precision_is_widened():
    exact = float(cross_entropy(logits(1, torch.bfloat16).double(), some_labels()))
    loss = cross_entropy(logits(1, torch.bfloat16), some_labels())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("label", [-1, 5, 254])
def test_labels_that_are_no_class(label):
    labels = some_labels()
    labels[1, 2, 3] = label
    with pytest.raises(ValueError, match=rf"labels: expected 0 to 4 or 255, got {label}"):
        cross_entropy(logits(1), labels)


def test_labels_of_another_batch():
    with pytest.raises(ValueError, match=r"labels: expected \[B, H, W\] .* got \[1, 4, 6\]"):
        cross_entropy(logits(1), some_labels()[:1])


@pytest.mark.parametrize(("sure", "least"), [(0.7, 0.1), (0.001, 0.25), (1.0, 1.0), (1e-9, 1e-9)])
def test_hard_cross_entropy(sure, least):
    hardest = sorted(entropies_of_labels(logits(1), some_labels()), reverse=True)
    hard = sum(math.exp(-x) < sure for x in hardest)
    kept = hardest[: max(hard, int(least * len(hardest)), 1)]
    loss = hard_cross_entropy(logits(1), some_labels(), sure=sure, least=least)
    assert float(loss) == pytest.approx(np.mean(kept))


def test_shares_that_are_none():
    with pytest.raises(ValueError, match="sure: expected a number above 0 and at most 1, got 0"):
        hard_cross_entropy(logits(1), some_labels(), sure=0)
    with pytest.raises(ValueError, match=r"least: expected .* got 1\.5"):
        hard_cross_entropy(logits(1), some_labels(), least=1.5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence(temperature):
    p, q = (probabilities(logits(seed) / temperature) for seed in (1, 2))
    square = temperature**2
    student_weighs = divergence(logits(1), logits(2), temperature=temperature)
    assert float(student_weighs) == pytest.approx(square * kl(p, q))
    teacher_weighs = divergence(logits(1), logits(2), temperature=temperature, weighing="teacher")
    assert float(teacher_weighs) == pytest.approx(square * kl(q, p))
    assert float(divergence(logits(1), logits(1) + 7)) == pytest.approx(0, abs=1e-12)


def test_a_teacher_is_not_taught():
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    divergence(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_bad_teachers():
    with pytest.raises(
        ValueError, match=r"teacher: expected batch and classes \[2, 5\] .* \[2, 4\]"
    ):
        divergence(logits(1), logits(2)[:, :4])
    with pytest.raises(ValueError, match="temperature: expected a number above 0, got 0"):
        divergence(logits(1), logits(2), temperature=0)


def test_equation_6():
    """Each term anew: CE(whole) + alpha KL(whole || teacher) + beta KL(path || its group)."""
    whole, path, teacher, group = (logits(seed) for seed in range(4))
    p = [probabilities(x) for x in (whole, path, teacher, group)]
    expected = np.mean(entropies_of_labels(whole, some_labels()))
    expected += 0.5 * kl(p[0], p[2]) + 0.5 * kl(p[1], p[3])
    student, told = Opinions(whole, path), Opinions(teacher, group)
    assert float(distillation_loss(student, told, some_labels())) == pytest.approx(expected)
    assert Distillation() == PAPER


def test_the_published_form():
    whole, path, teacher, group = (logits(seed) for seed in range(4))
    p = [probabilities(x) for x in (whole, path, teacher, group)]
    expected = np.mean(entropies_of_labels(whole, some_labels()))
    expected += 0.5 * np.mean(entropies_of_labels(path, some_labels()))
    expected += kl(p[2], p[0]) + 0.5 * kl(p[3], p[1])
    loss = distillation_loss(
        Opinions(whole, path), Opinions(teacher, group), some_labels(), PUBLISHED
    )
    assert float(loss) == pytest.approx(expected)


def test_a_teacher_without_groups_teaches_the_whole():
    whole, path, teacher, _ = (logits(seed) for seed in range(4))
    expected = cross_entropy(whole, some_labels()) + 0.5 * divergence(whole, teacher)
    loss = distillation_loss(Opinions(whole, path), Opinions(teacher), some_labels())
    assert float(loss) == pytest.approx(float(expected))
