"""What "right" means.

It is `tdnet_ops.reference` in float64 on the same numbers. The tolerance is tied to the dtype:
twice the error of the reference in the dtype that the operator computes in (float32 for half
precision), a few units in the last place, and, for half precision, one rounding of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import samples
from samples.sample import Sample
from samples.trees import convert, on_cpu, tensors, widen
from tdnet_ops import reference


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_near(
    actual: Tensor,
    exact: Tensor,
    plain: Tensor,
    dtype: torch.dtype,
    what: str,
    terms: int = 1,
    roundings: int = 0,
    operand_error: float = 0.0,
    largest: float = 1.0,
) -> None:
    """|actual - exact| <= 2 max|plain - exact| + a few units in the last place + one rounding.

    Args:
        actual: of the dtype under test.
        exact: in float64.
        plain: the same numbers by plain PyTorch in the dtype that the operator computes in.
        terms: of the longest sum behind one number; rounding in another order grows with its root.
        roundings: how many numbers behind a result may have been rounded to half precision on the
            way, one from another (softmax weights, phi(v)); float32 stays strict.
        operand_error: relative, of the operands of products (TF32).
        largest: at least, of the numbers behind a result; matters where they cancel.
    """
    actual, exact, plain = on_cpu((actual, exact, plain))
    assert actual.dtype == dtype, f"{what}: dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, expected {exact.shape}"
    if exact.numel() == 0:
        return
    assert torch.equal(actual.isnan(), exact.isnan()), f"{what}: NaN where none is due, or missing"
    actual, exact, plain = (torch.where(exact.isnan(), 0.0, x) for x in (actual, exact, plain))
    largest = max(largest, exact.abs().max().item())
    allowed = 2 * (plain.double() - exact).abs().max().item()
    allowed += (8 + terms**0.5) * torch.finfo(computing_dtype(dtype)).eps * largest
    allowed += 16 * operand_error * largest
    bound = torch.full_like(exact, allowed)
    if dtype in (torch.float16, torch.bfloat16):
        bound += torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
        bound += roundings * torch.finfo(dtype).eps / 2 * largest
    error = (actual.double() - exact).abs()
    excess = torch.where(error <= bound, 0.0, torch.where(error.isnan(), torch.inf, error / bound))
    worst = int(excess.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), exact.shape)]
    assert excess.flatten()[worst] == 0, (
        f"{what}: worst at {place}: got {actual[tuple(place)].item()!r}, expected "
        f"{exact[tuple(place)].item()!r}, allowed difference {bound[tuple(place)].item():.3g}"
    )


def assert_labels(labels: Tensor, arguments: Sequence[Any], what: str) -> None:
    """Labels may differ from the arg max only where the best classes lie within rounding."""
    logits, size, *options = on_cpu(arguments)
    align_corners, dtype = (*options, *(False, torch.uint8)[len(options) :])
    labels = labels.cpu()
    assert labels.dtype == dtype, f"{what}: dtype {labels.dtype}, expected {dtype}"
    assert list(labels.shape) == [logits.shape[0], *size], f"{what}: shape {labels.shape}"
    exact = F.interpolate(
        logits.double(), tuple(size), mode="bilinear", align_corners=align_corners
    )
    if labels.numel() == 0:
        return
    # Positions are computed in float32: their error grows with the extent of the map.
    pixels = 8 + max(logits.shape[2:])
    rounding = 2 * pixels * torch.finfo(computing_dtype(logits.dtype)).eps * exact.abs().max()
    best = exact.max(1).values
    chosen = exact.gather(1, labels.long()[:, None])[:, 0]
    wrong = (best - chosen > rounding).nonzero()
    assert len(wrong) == 0, f"{what}: not the best class at (batch, y, x) {wrong[:4].tolist()}"
    if logits.stride(1) == 0:
        return  # All classes are equal but for rounding.
    clear = exact.topk(min(2, exact.shape[1]), 1).values
    decided = (clear[:, 0] - clear[:, -1] > rounding).float().mean()
    assert exact.shape[1] == 1 or decided > 0.9, f"{what}: the sample decides too little: {decided}"


def check(
    sample: Sample,
    call: Callable[..., Any],
    roundings: int | None = None,
    operand_error: float = 0.0,
) -> None:
    """Calls `call` with the sample and compares with the definition, computed on the CPU.

    Args:
        roundings: as of assert_near, for kernels that multiply in half precision; None: those of
            DEVICE.
        operand_error: as of assert_near.

    Raises:
        AssertionError: it is wrong; the text names the worst coordinate.
    """
    arguments = sample.arguments()
    before = on_cpu([x.clone() for x in tensors(arguments)])
    actual = call(*arguments)
    assert all(x.device.type == samples.DEVICE.type for x in tensors([actual])), (
        f"{sample}: another device"
    )
    check_result(sample, arguments, actual, roundings, operand_error)
    for old, x in zip(before, on_cpu(tensors(arguments)), strict=True):
        torch.testing.assert_close(x, old, rtol=0, atol=0, equal_nan=True)


def check_result(
    sample: Sample,
    arguments: tuple[Any, ...],
    actual: Any,
    roundings: int | None = None,
    operand_error: float = 0.0,
) -> None:
    """Compares the result of a call with the definition; see `check`."""
    told = samples.OPERATORS[sample.operator]
    if roundings is None:
        roundings = 0 if samples.DEVICE.type == "cpu" else told.gpu_roundings
    if told.compare is not None:
        told.compare(actual, arguments, str(sample))
        return
    define = getattr(reference, sample.operator)
    home = on_cpu(arguments)
    exact = define(*widen(home))
    computing = computing_dtype(sample.dtype)
    plain = define(*convert(home, lambda x: x.to(computing)))
    for part, (out, right, low) in enumerate(
        zip(tensors([actual]), tensors([exact]), tensors([plain]), strict=True)
    ):
        what = f"{sample} result {part}"
        if told.exact:
            torch.testing.assert_close(out.cpu().double(), right, rtol=0, atol=0, equal_nan=True)
        terms = told.longest_sum(arguments)
        assert_near(out, right, low, sample.dtype, what, terms, roundings, operand_error)
        if out.dim() == 4 and told.like(arguments).stride(1) == 1:
            assert out.is_contiguous(memory_format=torch.channels_last), f"{what}: {out.stride()}"
        else:
            assert out.is_contiguous(), f"{what}: {out.stride()}"
