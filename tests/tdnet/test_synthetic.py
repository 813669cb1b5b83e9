import numpy as np
import pytest

from tdnet.data.palette import CLASS_NAMES
from tdnet.data.synthetic import street_clip, street_frame

SIZE = (64, 128)


def test_frames_have_the_asked_size_and_valid_labels():
    for size in [(32, 32), (33, 71), (97, 48)]:
        frame = street_frame(2, size)
        assert frame.image.shape == (*size, 3)
        assert frame.image.dtype == np.uint8
        assert frame.labels.shape == size
        assert frame.labels.dtype == np.uint8
        assert frame.labels.max() < len(CLASS_NAMES)


def test_a_clip_is_the_same_every_time_and_each_of_its_frames_alone():
    first = list(street_clip(3, SIZE, seed=5))
    for index, frame in enumerate(street_clip(3, SIZE, seed=5)):
        np.testing.assert_array_equal(frame.image, first[index].image)
        np.testing.assert_array_equal(frame.labels, first[index].labels)
    np.testing.assert_array_equal(street_frame(2, SIZE, seed=5).image, first[2].image)


def test_seeds_make_different_streets_and_frames_move():
    here = street_frame(0, SIZE, seed=0)
    assert (here.labels != street_frame(0, SIZE, seed=1).labels).mean() > 0.02
    moved = (here.labels != street_frame(4, SIZE, seed=0).labels).mean()
    assert 0.01 < moved < 0.5


def test_all_classes_occur():
    seen = set()
    for seed in range(4):
        for index in (0, 30, 60):
            seen |= set(np.unique(street_frame(index, (128, 256), seed).labels).tolist())
    assert seen == set(range(len(CLASS_NAMES)))


def test_classes_can_be_told_apart_by_their_looks():
    """Sky, road and vegetation lie where the labels say: their mean colours differ as in life."""
    frame = street_frame(6, (128, 256))

    def mean_color(name):
        return frame.image[frame.labels == CLASS_NAMES.index(name)].mean(axis=0)

    sky, road, vegetation = mean_color("sky"), mean_color("road"), mean_color("vegetation")
    assert sky[2] > sky[0] + 5
    assert np.ptp(road) < 20
    assert vegetation[1] > max(vegetation[0], vegetation[2]) + 10
    assert sky.mean() > road.mean() + 60


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="size"):
        street_frame(0, (31, 64))
    with pytest.raises(ValueError, match="index"):
        street_frame(-1)
    with pytest.raises(ValueError, match="seed"):
        street_frame(0, SIZE, seed=-1)
    with pytest.raises(ValueError, match="num_frames"):
        street_clip(-1)
