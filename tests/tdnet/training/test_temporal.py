"""The temporal loss against NumPy, and the flow that it is given."""

import numpy as np
import pytest
import torch
from small import make_task

from tdnet.data.synthetic import street_frame
from tdnet.preprocessing import images_of, pixels_of
from tdnet.training.temporal import estimated_flow, temporal_loss


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_weighed_difference_after_whole_steps():
    previous, current = random(1, 3, 5, 6, seed=1), random(1, 3, 5, 6, seed=2)
    flow = torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    flow[:, 0], flow[:, 1] = 2, -1  # two to the right, one up
    weights = random(1, 5, 6, seed=3).abs()
    p, q = (np.exp(x[0].numpy()) / np.exp(x[0].numpy()).sum(0) for x in (previous, current))
    total = 0.0
    for i in range(5):
        for j in range(6):
            inside = i - 1 >= 0 and j + 2 < 6
            before = p[:, i - 1, j + 2] if inside else np.zeros(3)
            total += float(weights[0, i, j]) * ((q[:, i, j] - before) ** 2).sum()
    assert float(temporal_loss(previous, current, flow, weights)) == pytest.approx(total / 30)


def test_mistakes_are_named():
    flow, weights = torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4)
    with pytest.raises(ValueError, match=r"previous: expected \[1, 3, 2, 2\] as current, got"):
        temporal_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2, 2), flow, weights)
    with pytest.raises(ValueError, match=r"weights: expected \[1, 4, 4\] as the flow, got"):
        temporal_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), flow, weights[:, 1:])


def test_pixels_come_back_from_images():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    back = pixels_of(images_of(pixels))
    torch.testing.assert_close(back, pixels.permute(0, 3, 1, 2).float(), rtol=0, atol=1e-3)


def test_the_flow_explains_most_of_the_street():
    pytest.importorskip("cv2")
    images = [
        images_of(torch.from_numpy(street_frame(index, (96, 160)).image)[None]) for index in (4, 5)
    ]
    flow, weights = estimated_flow(*images)
    assert flow.shape == (1, 2, 96, 160)
    still = torch.exp(-(pixels_of(images[1]) - pixels_of(images[0])).div(255).abs().sum(1))
    assert weights.mean() > still.mean()
    assert flow.abs().mean() > 0.3


def test_it_counts_in_the_loss():
    pytest.importorskip("cv2")
    images = random(2, 3, 3, 32, 48, seed=4).float()
    labels = torch.zeros(2, 32, 48, dtype=torch.long)
    losses = []
    for weight in (0.0, 1.0):
        task = make_task(temporal=weight)().eval()
        assert task.window_length == (3 if weight else 2)
        loss = task(images[:, -task.window_length :], labels, path=1)
        losses.append(loss.item())
    assert losses[1] > losses[0]
