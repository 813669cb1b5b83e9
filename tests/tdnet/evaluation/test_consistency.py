"""TC of scenes whose motion is known, and VC of windows counted by hand."""

import numpy as np
import pytest

from tdnet.evaluation.consistency import (
    VideoConsistency,
    agreement,
    carried_back,
    temporal_consistency,
    visible,
)


def scene(seed=0, size=(24, 60)):
    return np.random.default_rng(seed).integers(0, 4, size).astype(np.uint8)


def constant_flow(right, down, size=(24, 40)):
    return np.broadcast_to(np.array([right, down], np.float32), (*size, 2))


def test_a_translated_scene_is_perfectly_consistent():
    """A camera that pans by 3 pixels a frame over a scene of any labels."""
    labels = [scene()[:, shift : shift + 40] for shift in (0, 3, 6, 9)]
    flows = [constant_flow(-3, 0)] * 3
    assert temporal_consistency(labels, flows, 4) == 1
    assert temporal_consistency(labels, [constant_flow(0, 0)] * 3, 4) < 0.3


def test_pairs_are_pooled():
    """One pixel in six differs in the second pair."""
    labels = [np.array([row]) for row in ([0, 0, 1], [0, 0, 1], [0, 1, 1])]
    flows = [constant_flow(0, 0, (1, 3))] * 2
    # Class 0: 2 + 1 of 2 + 2 pixels; class 1: 1 + 1 of 1 + 2.
    assert temporal_consistency(labels, flows, 2) == pytest.approx((3 / 4 + 2 / 3) / 2)
    seen = [np.ones((1, 3), bool), np.array([[True, False, True]])]
    assert temporal_consistency(labels, flows, 2, seen) == 1


def test_labels_come_from_the_nearest_pixel_and_none_from_outside():
    labels = np.array([[1, 2, 3]])
    assert carried_back(labels, constant_flow(1, 0, (1, 3))).tolist() == [[2, 3, 255]]
    assert carried_back(labels, constant_flow(-0.6, 0, (1, 3))).tolist() == [[255, 1, 2]]
    assert carried_back(labels, constant_flow(0.4, 0.4, (1, 3))).tolist() == [[1, 2, 3]]
    assert carried_back(labels, constant_flow(0, 1, (1, 3))).tolist() == [[255] * 3]
    counts = agreement(labels, labels, constant_flow(1, 0, (1, 3)), 4)
    assert counts.sum() == 2
    assert counts[1, 2] == counts[2, 3] == 1


def test_what_is_covered_is_not_visible():
    """A block of 10 columns goes 6 pixels right over a still background."""
    flow, backward = np.zeros((2, 8, 40, 2), np.float32)
    flow[:, 10:20, 0] = 6
    backward[:, 16:26, 0] = -6
    assert visible(flow, backward)[0].tolist() == [not 20 <= x < 26 for x in range(40)]
    away = constant_flow(30, 0, (8, 40))
    assert visible(away, -away)[0].tolist() == [x < 10 for x in range(40)]


def test_bad_videos():
    with pytest.raises(ValueError, match="labels: expected 2 frames or more, got 1"):
        temporal_consistency([scene()], [], 4)
    with pytest.raises(ValueError, match=r"flow: expected \[24, 60, 2\] as the labels, got"):
        temporal_consistency([scene()] * 2, [constant_flow(0, 0)], 4)
    with pytest.raises(ValueError, match="shorter"):
        temporal_consistency([scene()] * 3, [constant_flow(0, 0, (24, 60))], 4)


# --- VC ------------------------------------------------------------------------------------------


def video_consistency(window, predicted, target):
    """A column a pixel, a row a frame."""
    vc = VideoConsistency(window)
    for labels, truth in zip(predicted, target, strict=True):
        vc.add(np.array([labels]), np.array([truth]))
    return vc


def test_windows_of_three_counted_by_hand():
    target = [[0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 2, 1], [0, 1, 0, 1], [0, 1, 0, 1]]
    predicted = [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    vc = video_consistency(3, predicted, target)
    # True labels that stay: pixels 0, 1, 2; then 0, 1, 3; then 0, 1, 3.
    # Predictions: 0 and 2 stay (2 is wrong); then 0 and 3 (wrong); then 0 and 1 (wrong).
    assert vc.steady == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert vc.steady_and_right == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_vc_is_that_of_windows():
    random = np.random.default_rng(0)
    target = (random.random((30, 50)) < 0.03).cumsum(0) % 3
    predicted = (random.random((30, 50)) < 0.03).cumsum(0) % 3
    expected = []
    for begin in range(30 - 8 + 1):
        stays = (target[begin : begin + 8] == target[begin]).all(0)
        steady = (predicted[begin : begin + 8] == predicted[begin]).all(0)
        expected.append(steady[stays].mean())
    assert video_consistency(8, predicted, target).steady == pytest.approx(expected)


def test_ignored_pixels_are_a_label_for_vspw_and_never_right():
    vc = video_consistency(2, [[0, 1], [0, 0]], [[0, 255], [0, 255]])
    assert vc.steady == [0.5]
    assert vc.steady_and_right == [1]
    vc = video_consistency(2, [[0], [0]], [[255], [255]])
    assert (vc.steady, vc.steady_and_right) == ([1], [])


def test_windows_cross_no_cut():
    vc = video_consistency(2, [[0], [0]], [[0], [0]])
    vc.start()
    vc.add(np.array([[0]]), np.array([[0]]))
    assert len(vc.steady) == 1
    vc = video_consistency(2, [[0], [0]], [[0], [1]])
    assert vc.steady == []  # no true label stays


def test_bad_windows():
    with pytest.raises(ValueError, match="window: expected 2 frames or more, got 1"):
        VideoConsistency(1)
    with pytest.raises(ValueError, match=r"predicted: expected \[1, 1\] as target, got \[1, 2\]"):
        VideoConsistency(2).add(np.zeros((1, 2)), np.zeros((1, 1)))
