import numpy as np
import pytest

from tdnet.data.palette import CLASS_COLORS, CLASS_NAMES, IGNORE_LABEL, colorize, overlay


def test_there_are_nineteen_named_classes_with_cityscapes_colors():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 19
    assert CLASS_COLORS.shape == (19, 3)
    assert CLASS_COLORS[CLASS_NAMES.index("road")].tolist() == [128, 64, 128]
    assert CLASS_COLORS[CLASS_NAMES.index("car")].tolist() == [0, 0, 142]
    assert CLASS_COLORS[CLASS_NAMES.index("bicycle")].tolist() == [119, 11, 32]


def test_every_label_has_its_own_color_and_ignore_is_black():
    colors = colorize(np.arange(256, dtype=np.uint8).reshape(16, 16)).reshape(256, 3)
    np.testing.assert_array_equal(colors[:19], CLASS_COLORS)
    assert colors[IGNORE_LABEL].tolist() == [0, 0, 0]
    assert len(np.unique(colors, axis=0)) == 256


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_overlay_is_the_weighted_mean(alpha):
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (33, 17, 3), dtype=np.uint8)
    labels = random.integers(0, 256, (33, 17), dtype=np.uint8)
    expected = (1 - alpha) * frame + alpha * colorize(labels)
    assert np.abs(overlay(frame, labels, alpha) - expected).max() <= 1
    if alpha in (0.0, 1.0):
        np.testing.assert_array_equal(overlay(frame, labels, alpha), expected)


def test_overlay_takes_any_strides():
    frame = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(
        overlay(frame.transpose(1, 0, 2), labels.T, 0.5),
        overlay(frame, labels, 0.5).transpose(1, 0, 2),
    )


def test_bad_arguments_are_named():
    frame, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match="labels"):
        colorize(labels.astype(np.int64))
    with pytest.raises(ValueError, match="labels"):
        colorize(frame)
    with pytest.raises(ValueError, match="frame"):
        overlay(frame[:, :5], labels)
    with pytest.raises(ValueError, match="frame"):
        overlay(frame.astype(np.float32), labels)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            overlay(frame, labels, alpha)
