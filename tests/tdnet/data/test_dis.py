"""Flow of scenes whose motion is known, at sizes that OpenCV alone does not take."""

import sys

import numpy as np
import pytest

from tdnet.data.dis import dis_flow


def smooth_image(size):
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def test_it_finds_a_translation():
    image = smooth_image((80, 120))
    flow = dis_flow(image[:, 5:105], image[:, :100])
    assert flow.shape == (80, 100, 2)
    middle = flow[20:-20, 20:-20]
    np.testing.assert_allclose(np.median(middle, (0, 1)), [5, 0], atol=0.3)


@pytest.mark.parametrize("size", [(8, 64), (24, 100), (12, 300)])
def test_frames_may_be_low(size):
    height, width = size
    image = smooth_image((height, width + 2))
    flow = dis_flow(image[:, 2:], image[:, :-2])
    assert flow.shape == (height, width, 2)
    np.testing.assert_allclose(np.median(flow[:, 8:-8], (0, 1)), [2, 0], atol=0.3)


@pytest.mark.parametrize("size", [(64, 8), (8, 8), (1, 1)])
def test_frames_may_be_narrow_or_small(size):
    image = smooth_image(size)
    np.testing.assert_allclose(dis_flow(image, image), np.zeros((*size, 2)), atol=0.1)


def test_frames_of_two_sizes():
    frame, other = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 48, 3), np.uint8)
    with pytest.raises(ValueError, match="next_frame: expected 40x50 as frame, got 40x48"):
        dis_flow(frame, other)


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ImportError, match="needs cv2: pip install opencv-python-headless"):
        dis_flow(frame, frame)
