"""Metrics against counts by loops, and intervals that hold what they say."""

import numpy as np
import pytest

from tdnet.evaluation.metrics import (
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    miou_difference,
    miou_interval,
    pixel_accuracy,
    training_difference,
)

K = 4


def maps(seed, shape=(7, 9)):
    random = np.random.default_rng(seed)
    target = random.integers(0, K, shape).astype(np.uint8)
    predicted = np.where(random.random(shape) < 0.6, target, random.integers(0, K, shape))
    target[random.random(shape) < 0.1] = 255
    return predicted.astype(np.uint8), target


def test_metrics_are_those_of_loops():
    predicted, target = maps(0)
    confusion = confusion_matrix(predicted, target, K)
    ious, accuracies = [], []
    for c in range(K):
        both = either = true = 0
        for p, t in zip(predicted.flat, target.flat, strict=True):
            if t == 255:
                continue
            both += p == t == c
            either += c in (p, t)
            true += t == c
        ious.append(both / either)
        accuracies.append(both / true)
    known = target != 255
    np.testing.assert_allclose(class_iou(confusion), ious)
    np.testing.assert_allclose(mean_iou(confusion), np.mean(ious))
    np.testing.assert_allclose(mean_accuracy(confusion), np.mean(accuracies))
    np.testing.assert_allclose(pixel_accuracy(confusion), (predicted == target)[known].mean())


def test_rows_are_true_classes():
    confusion = confusion_matrix(np.array([[1, 1, 0]]), np.array([[0, 255, 2]]), 3)
    assert confusion.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_class_that_the_truth_lacks_is_left_out_of_the_means():
    target = np.array([[0, 0, 1, 1]], np.uint8)
    confusion = confusion_matrix(np.array([[0, 2, 1, 1]], np.uint8), target, 4)
    np.testing.assert_allclose(class_iou(confusion), [0.5, 1, np.nan, np.nan])
    assert mean_iou(confusion) == 0.75
    assert mean_accuracy(confusion) == 0.75
    nothing = np.zeros((2, 4, 4), int)
    assert np.isnan(mean_iou(nothing)).all()
    assert np.isnan(pixel_accuracy(nothing)).all()


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        ([[0, 1]], [[0]], r"predicted: expected \[1, 1\] as target, got \[1, 2\]"),
        ([[0, 3]], [[0, 1]], "predicted: expected classes 0 to 2, got 0 to 3"),
        ([[0, 1]], [[0, 254]], "target: expected classes 0 to 2, got 0 to 254"),
        ([[0, 1]], [[0, -1]], "target: expected classes 0 to 2, got -1 to 0"),
    ],
)
def test_bad_label_maps(predicted, target, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(predicted), np.array(target), 3)


# --- Bootstrap -----------------------------------------------------------------------------------


def frames_of(right, pixels=100):
    """Confusion matrices of two classes; of each class a share of the pixels is right."""
    hits = np.asarray(right) * pixels
    return np.array([[[h, pixels - h], [pixels - h, h]] for h in hits])


def coverage(repetitions, block_length, repeat, seed=0):
    """How often the interval holds the mIoU of endless video of shares 0.5 to 0.9."""
    truth = 0.7 / 1.3
    random = np.random.default_rng(seed)
    held = 0
    for _ in range(repetitions):
        right = np.repeat(random.uniform(0.5, 0.9, 60), repeat)
        interval = miou_interval(frames_of(right), block_length, resamples=200)
        held += interval.low <= truth <= interval.high
    return held / repetitions


def test_intervals_hold_the_truth_in_95_of_100():
    assert 0.9 <= coverage(300, 1, repeat=1) <= 0.99


def test_blocks_are_needed_where_neighbours_are_alike():
    assert coverage(150, 1, repeat=6) < 0.75
    assert coverage(150, 12, repeat=6) > 0.88


def test_every_frame_is_drawn_as_often_as_others():
    """A frame at the end of the video moves the mean of resamples as one in the middle does."""
    means = []
    for odd in (0, 5, 11):
        right = np.full(12, 0.9)
        right[odd] = 0.1
        interval = miou_interval(frames_of(right), 4, resamples=4000)
        means.append((interval.low, interval.high))
    np.testing.assert_allclose(means, [means[0]] * 3, atol=0.01)


def test_of_several_runs_the_mean_is_taken():
    random = np.random.default_rng(0)
    one, other = (frames_of(random.uniform(0.4, 0.9, 20)) for _ in range(2))
    both = miou_interval(np.stack([one, other]), seed=3)
    assert both == miou_interval(np.stack([other, one]), seed=3)
    alone = miou_interval(one, seed=3)
    assert alone == miou_interval(np.stack([one, one]), seed=3)
    assert alone.low <= mean_iou(one.sum(0)) <= alone.high


def test_a_difference_is_sharper_than_its_parts():
    """What frames have in common cancels: one point is seen between frames 30 points apart."""
    right = np.random.default_rng(0).uniform(0.5, 0.8, 50)
    first, second = frames_of(right), frames_of(right + 0.01)
    found = miou_difference(first, second)
    assert found.miou == pytest.approx(mean_iou(second.sum(0)) - mean_iou(first.sum(0)))
    assert 0 < found.interval.low <= found.miou <= found.interval.high < 0.03
    interval = miou_interval(first)
    assert interval.high - interval.low > 0.03
    same = miou_difference(first, np.stack([first, first]))
    assert (same.miou, same.interval.low, same.interval.high) == (0, 0, 0)


def test_a_rare_class_may_be_missing_from_a_resample():
    """It counts then as in all frames: the mean is over the same classes in every draw."""
    frames = np.zeros((10, 3, 3), int)
    frames[:, 0, 0] = 10
    frames[3, 1] = [0, 1, 9]
    interval = miou_interval(frames, 1)
    assert mean_iou(frames.sum(0)) == pytest.approx(0.55)
    assert (interval.low, interval.high) == pytest.approx((0.55, 0.55))
    # Its pixels count against the other class where they are drawn, some times or none.
    frames[3, 1] = [10, 0, 0]
    interval = miou_interval(frames, 1)
    assert interval.low < mean_iou(frames.sum(0)) < interval.high
    assert interval.high == 0.5


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (np.ones((2, 3)), {}, r"confusions: expected \[frames, K, K\] or .*, got \[2, 3\]"),
        (np.zeros((2, 3, 3)), {}, "confusions: expected labelled pixels, got none"),
        (np.ones((2, 3, 3)), {"block_length": 0}, "block_length: expected at least 1, got 0"),
        (np.ones((2, 3, 3)), {"resamples": 0}, "resamples: expected at least 1, got 0"),
    ],
)
def test_bad_confusions(frames, options, message):
    with pytest.raises(ValueError, match=message):
        miou_interval(frames, **options)


def test_differences_are_of_the_same_frames():
    with pytest.raises(ValueError, match=r"second: expected .* \[5, 2, 2\] as first, got \[4, 2"):
        miou_difference(np.ones((5, 2, 2)), np.ones((4, 2, 2)))


@pytest.mark.parametrize("trainings", [2, 3, 10, 14])
def test_the_interval_over_trainings_holds_what_it_says(trainings):
    """Of many pairs of equal models 95% of the intervals hold 0; of more than ten a few more."""
    random = np.random.default_rng(trainings)
    mious = random.normal(0.6, 0.02, (2000, 2, trainings))
    found = [training_difference(*pair).interval for pair in mious]
    held = np.mean([interval.low <= 0 <= interval.high for interval in found])
    assert 0.935 < held < 0.97
    difference = training_difference([0.5] * trainings, [0.6] * trainings)
    assert difference.miou == pytest.approx(0.1)
    assert difference.interval.low == pytest.approx(difference.interval.high)


def test_an_interval_over_trainings_needs_pairs_of_them():
    for first, second in (([0.5], [0.6]), ([0.5, 0.6], [0.6])):
        with pytest.raises(ValueError, match="second: expected as many trainings as first"):
            training_difference(first, second)
