import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from tdnet.data.flow import Flow, read_flow, write_flow
from tdnet.data.synthetic import street_clip, street_clip_with_flow
from tdnet.data.warp import warp

SIZE = (96, 192)


@pytest.fixture(scope="module")
def street():
    return list(street_clip_with_flow(3, SIZE, seed=1))


def test_the_frames_are_those_of_the_clip(street):
    for (frame, _), expected in zip(street, street_clip(3, SIZE, seed=1), strict=True):
        np.testing.assert_array_equal(frame.image, expected.image)
        np.testing.assert_array_equal(frame.labels, expected.labels)
    assert [flow is None for _, flow in street] == [True, False, False]


def as_images(array):
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None]


def test_the_frame_before_warped_by_the_flow_is_the_frame(street):
    for (before, _), (now, flow) in pairwise(street):
        assert flow.pixels.dtype == np.float32
        assert flow.valid.mean() > 0.85
        assert 5 < np.abs(flow.pixels[:, flow.valid]).max() < 60
        warped = warp(as_images(before.image), torch.from_numpy(flow.pixels)[None])
        moved = (warped - as_images(now.image)).abs().mean(1)[0].numpy()[flow.valid]
        stayed = np.abs(before.image.astype(float) - now.image).mean(-1)[flow.valid]
        # What is left is noise, and edges that fall between pixels.
        assert np.median(moved) < 5
        assert moved.mean() < 0.6 * stayed.mean()


def test_moving_things_have_their_own_flow(street):
    """The car ahead drives almost as fast as we do, and what comes towards us twice as fast."""
    flow = street[2][1]
    car = (street[2][0].labels == 13) & flow.valid
    middle = np.zeros(SIZE, bool)
    middle[45:60, 80:112] = True
    assert (car & middle).sum() > 20
    assert np.abs(flow.pixels[:, car & middle]).mean() < 1


def test_what_was_hidden_is_not_valid(street):
    """Every valid point had its label before."""
    (before, _), (now, flow) = street[0], street[1]
    rows, columns = np.nonzero(flow.valid)
    right, down = np.rint(flow.pixels[:, rows, columns]).astype(int)
    was = before.labels[np.clip(rows + down, 0, 95), np.clip(columns + right, 0, 191)]
    assert (was == now.labels[rows, columns]).mean() > 0.97
    assert not flow.valid.all()


def test_files_keep_a_64th_of_a_pixel(tmp_path, street):
    pytest.importorskip("cv2")
    flow = street[1][1]
    write_flow(tmp_path / "flow.png", flow)
    read = read_flow(tmp_path / "flow.png")
    np.testing.assert_array_equal(read.valid, flow.valid)
    assert read.pixels.dtype == np.float32
    assert np.abs(read.pixels - flow.pixels)[:, flow.valid].max() <= 1 / 128
    assert (read.pixels[:, ~flow.valid] == 0).all()


def test_files_are_those_of_kitti(tmp_path):
    cv2 = pytest.importorskip("cv2")
    pixels = np.array([[[0.5, 511.9, 600.0]], [[-2.0, -511.9, 0.0]]], np.float32)
    write_flow(tmp_path / "flow.png", Flow(pixels, np.ones((1, 3), bool)))
    blue_green_red = cv2.imread(str(tmp_path / "flow.png"), cv2.IMREAD_UNCHANGED)
    assert blue_green_red.dtype == np.uint16
    assert blue_green_red[0].tolist() == [
        [1, 32768 - 128, 32768 + 32],
        [1, 32768 - 32762, 32768 + 32762],
        [0, 0, 0],
    ]


def test_bad_flow_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"flow: expected pixels \[2, H, W\] and valid \[H, W\]"):
        write_flow(tmp_path / "a.png", Flow(np.zeros((2, 3, 4), np.float32), np.ones((4, 3), bool)))
    pytest.importorskip("cv2")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: expected a PNG of uint16 .* got no image"):
        read_flow(tmp_path / "a.png")


def test_without_opencv_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="needs cv2: pip install opencv-python-headless"):
        read_flow(tmp_path / "a.png")
