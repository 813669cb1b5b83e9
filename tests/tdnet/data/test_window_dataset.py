import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader

from tdnet.data.augment import evaluation_transform
from tdnet.data.batches import SeededBatches
from tdnet.data.folder import folder
from tdnet.data.palette import IGNORE_LABEL
from tdnet.data.window_dataset import WindowDataset
from tdnet.preprocessing import images_of


def noisy(images, labels):
    """A transform with something random in it."""
    return images + torch.rand(images.shape), labels.long()


def dataset(root, *arguments, transform=noisy, **options):
    return WindowDataset(folder(root, "train"), *arguments, transform, **options)


def pixels(root, name):
    return torch.from_numpy(np.array(Image.open(root / "train" / name)))


def test_a_window_of_files(videos_folder):
    windows = dataset(videos_folder, 2, transform=evaluation_transform())
    assert len(windows) == 2
    images, labels = windows[0]
    frames = torch.stack([pixels(videos_folder, f"a/images/{index}.png") for index in (1, 2)])
    assert images.dtype == torch.float32
    assert_close(images, images_of(frames), rtol=0, atol=0)
    numbers = pixels(videos_folder, "a/labels/2.png").long()
    assert_close(labels, torch.where(numbers == 7, IGNORE_LABEL, numbers))


def test_the_step_and_all_labels(videos_folder):
    windows = dataset(videos_folder, 2, step=2, labels="all", transform=evaluation_transform())
    (_, first), (images, second) = windows
    assert first.shape == second.shape == (2, *images.shape[-2:])
    assert (first[0] == IGNORE_LABEL).all()  # of a frame that nobody labelled
    assert_close(second[0], first[1])  # frame 2


def test_the_seed_decides_and_nothing_else_changes(videos_folder):
    windows = dataset(videos_folder, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images, _ = windows[1, 5]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(windows[1, 5][0], images)
    assert not torch.equal(windows[1, 6][0], images)
    assert torch.equal(windows[1][0], windows[1, 0][0])


def test_workers_give_the_same(videos_folder):
    windows = dataset(videos_folder, 3, motion_share=0.5)
    batches = SeededBatches(len(windows), 2, 2, seed=4)
    alone = list(DataLoader(windows, batch_sampler=batches))
    workers = DataLoader(windows, batch_sampler=batches, num_workers=2)
    for one, other in zip(alone, workers, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_it_can_be_sent_to_workers(videos_folder):
    windows = dataset(videos_folder, 3)
    assert_close(pickle.loads(pickle.dumps(windows))[0, 1], windows[0, 1], rtol=0, atol=0)


def test_moved_stills(videos_folder):
    windows = dataset(videos_folder, 3, transform=evaluation_transform(), motion_share=1.0)
    assert len(windows) == 3  # of clip b too, which is one frame
    images, labels = windows[2, 1]
    still = pixels(videos_folder, "b/images/0.png")
    numbers = pixels(videos_folder, "b/labels/0.png").long()
    assert images.shape == (3, 3, *still.shape[:2])
    assert not torch.equal(images[0], images[2])
    assert_close(labels, torch.where(numbers == 7, IGNORE_LABEL, numbers))
    assert not torch.equal(windows[2, 2][0], images)


def test_the_share_of_moved_stills(videos_folder):
    windows = dataset(
        videos_folder, 2, labels="all", transform=lambda images, labels: (images, labels),
        motion_share=0.3,
    )  # fmt: skip
    # Frame 1 has no labels, a moved still has.
    moved = [(windows[0, seed][1][0] != IGNORE_LABEL).any() for seed in range(60)]
    assert 8 < sum(moved) < 30
    assert (windows[2, 0][1][0] != IGNORE_LABEL).any()


def test_files_that_do_not_fit_are_named(videos_folder):
    windows = dataset(videos_folder, 2)
    labels = videos_folder / "train" / "a" / "labels" / "2.png"
    Image.new("L", (40, 23)).save(labels)
    with pytest.raises(ValueError, match=r"2\.png: expected 24x40 as its image, got 23x40"):
        windows[0]
    Image.new("RGB", (40, 24)).save(labels)
    with pytest.raises(
        ValueError, match=r"2\.png: expected label numbers of 8 bits, got pixels of mode 'RGB'"
    ):
        windows[0]
    Image.new("RGB", (40, 23)).save(videos_folder / "train" / "a" / "images" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: expected 24x40 as 2\.png, got 23x40"):
        windows[0]


def test_label_maps_with_a_palette(videos_folder):
    labels = videos_folder / "train" / "b" / "labels" / "0.png"
    image = Image.new("P", (40, 24), 2)
    image.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0])
    image.save(labels)
    assert (dataset(videos_folder, 1)[2][1] == 2).all()


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"labels": "some"}, "labels: expected 'last' or 'all', got 'some'"),
        ({"motion_share": 1.5}, "motion_share: expected a number from 0 to 1, got 1.5"),
        ({"step": 5}, "videos: expected labelled frames with 1 before them, 5 apart, got none"),
        ({"step": 0}, "step: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(videos_folder, bad, expected):
    with pytest.raises(ValueError, match=expected):
        dataset(videos_folder, 2, **bad)
