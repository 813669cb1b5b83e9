import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tdnet.data.motion import CameraPath
from tdnet.data.palette import IGNORE_LABEL
from tdnet.data.warp import warp


def random_path(seed, length=4, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CameraPath.random(length, **options)


def smooth_still(height, width):
    """Of few pixels' worth of detail, so that reading between pixels is almost exact."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(columns / 9 + rows / (7 + k) + k) for k in range(3)]
    return (127 + 120 * torch.stack(waves)).to(torch.uint8)


@pytest.mark.parametrize("shutter", [0.0, 0.5])
def test_warping_a_frame_by_the_flow_gives_the_next(shutter):
    still = smooth_still(60, 90)
    for seed in range(4):
        path = random_path(seed, most_shutter=shutter)
        images = path.images(still).float()
        flow, valid = path.flow(60, 90)
        assert flow.shape == (3, 2, 60, 90)
        assert 0.4 < flow.abs().max() < 10
        assert valid.float().mean() > 0.8
        # Beside what is not valid, reading between pixels mixes in what lies beyond the still.
        beyond = F.pad((~valid).float(), (2, 2, 2, 2), value=1.0)
        valid = F.max_pool2d(beyond[:, None], 5, 1)[:, 0] == 0
        moved = (warp(images[:-1], flow) - images[1:]).abs().amax(1)
        assert moved[valid].max() < (2 if shutter == 0 else 6)
        assert (images[:-1] - images[1:]).abs().amax(1)[valid].mean() > 2


def test_the_last_frame_is_the_still():
    still, labels = smooth_still(20, 30), torch.randint(0, 255, (20, 30), dtype=torch.uint8)
    path = random_path(0, most_shutter=0)
    assert torch.equal(path.images(still)[-1], still)
    assert torch.equal(path.labels(labels)[-1], labels)


def test_labels_move_with_the_images():
    labels = torch.arange(48, dtype=torch.uint8).view(6, 8)
    labels = labels.repeat_interleave(10, 0).repeat_interleave(10, 1)
    path = random_path(2, most_shutter=0)
    images = path.images(labels[None].expand(3, -1, -1))[:, 0]
    moved = path.labels(labels)
    seen = moved != IGNORE_LABEL
    assert 0.8 < seen.float().mean() < 1
    assert (images == moved)[seen].float().mean() > 0.8  # but where blocks of labels meet


def test_a_pan_is_a_constant_flow():
    speed = torch.tensor([0.1, 0.0, 0, 0, 0, 0], dtype=torch.float64)
    path = CameraPath(2, speed, torch.zeros(6, dtype=torch.float64))
    flow, valid = path.flow(10, 40)
    assert_close(flow, torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 10, 40))
    # At the end of a pan to the right the last two columns were not seen before.
    assert valid[0, :, :-2].all()
    assert not valid[0, :, -2:].any()


@pytest.mark.parametrize(
    ("index", "speed", "corner"), [(2, math.pi / 2, (4.0, 0.0)), (3, math.log(2), (1.0, 1.0))]
)
def test_a_quarter_turn_and_a_zoom_by_two(index, speed, corner):
    speeds = torch.zeros(6, dtype=torch.float64)
    speeds[index] = speed
    flow, _ = CameraPath(2, speeds, torch.zeros_like(speeds)).flow(5, 5)
    assert_close(flow[0, :, 2, 2], torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(flow[0, :, 0, 0], torch.tensor(corner), atol=1e-5, rtol=0)


def test_the_seed_decides():
    still = smooth_still(20, 30)
    assert torch.equal(random_path(1).images(still), random_path(1).images(still))
    assert not torch.equal(random_path(1).images(still), random_path(2).images(still))


def test_one_frame_has_no_flow():
    flow, valid = random_path(0, length=1).flow(4, 6)
    assert (flow.shape, valid.shape) == ((0, 2, 4, 6), (0, 4, 6))


@pytest.mark.parametrize(("length", "shutter"), [(0, 0.5), (2, 1.5)])
def test_bad_arguments_are_named(length, shutter):
    with pytest.raises(ValueError, match=r"length: expected|most_shutter: expected"):
        CameraPath.random(length, shutter)
