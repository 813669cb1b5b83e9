import pickle
import sys

import pytest
import torch
from torch.testing import assert_close

from tdnet.data.augment import evaluation_transform, training_transform
from tdnet.data.palette import IGNORE_LABEL
from tdnet.preprocessing import MEAN, STANDARD_DEVIATION, images_of


def painted(num_frames, height, width, block, values=range(250)):
    """Blocks of labels, and images whose three colours are the labels."""
    picked = torch.randint(len(values), (num_frames, -(-height // block), -(-width // block)))
    cells = torch.tensor(values)[picked]
    labels = cells.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]
    labels = labels.to(torch.uint8)
    return labels[:, None].expand(-1, 3, -1, -1).contiguous(), labels


def pixels_of(images):
    """Images as they were before they were normalised."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STANDARD_DEVIATION))
    return 255 * (images * deviation + mean)


def test_images_and_labels_go_the_same_way():
    pytest.importorskip("torchvision")
    transform = training_transform((20, 30), scale=(1.0, 1.0), flip=0.5)
    images, labels = painted(3, 26, 37, block=1)
    crops = set()
    for seed in range(8):
        torch.manual_seed(seed)
        moved, moved_labels = transform(images, labels)
        assert moved.shape == (3, 3, 20, 30)
        assert (moved.dtype, moved_labels.dtype) == (torch.float32, torch.int64)
        assert type(moved) is type(moved_labels) is torch.Tensor
        assert_close(pixels_of(moved)[:, 0].round().long(), moved_labels)
        crops.add(tuple(moved_labels[0, 0].tolist()))
    assert len(crops) > 4


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.7, 3.0])
def test_scaled_images_and_labels_fit(scale):
    """Where labels change, the image is halfway between them."""
    pytest.importorskip("torchvision")
    transform = training_transform((60, 80), scale=(scale, scale))
    images, labels = painted(1, 120, 160, block=20, values=(0, 200))
    torch.manual_seed(1)
    moved, moved_labels = transform(images, labels)
    assert set(moved_labels.unique().tolist()) == {0, 200}
    agree = (pixels_of(moved)[0, 0] > 100) == (moved_labels[0] > 100)
    assert agree.float().mean() > 0.99


def test_what_is_too_small_is_padded():
    pytest.importorskip("torchvision")
    transform = training_transform((40, 50), scale=(0.5, 0.5), flip=0)
    images, labels = painted(2, 40, 50, block=1)
    moved, moved_labels = transform(images, labels)
    ignored = moved_labels == IGNORE_LABEL
    assert (~ignored).sum() == 2 * 20 * 25
    assert torch.equal(ignored[0], ignored[1])
    beyond = -torch.nn.functional.max_pool2d(-ignored[:, None].float(), 5, 1, 2)[:, 0] == 1
    assert moved.movedim(1, -1)[beyond].abs().max() < 0.02


def test_the_whole_window_has_one_colour():
    pytest.importorskip("torchvision")
    transform = training_transform((16, 16), scale=(1.0, 1.0), flip=0, jitter=0.5)
    frame = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    window, labels = frame.expand(4, -1, -1, -1), torch.zeros(1, 16, 16, dtype=torch.uint8)
    torch.manual_seed(0)
    first, _ = transform(window, labels)
    assert all(torch.equal(image, first[0]) for image in first)
    assert not torch.equal(first[:1], images_of(frame.permute(0, 2, 3, 1)))
    assert not torch.equal(transform(window, labels)[0], first)


def test_transforms_can_be_sent_to_workers():
    pytest.importorskip("torchvision")
    images, labels = painted(2, 20, 20, block=2)
    for transform in (training_transform((16, 16), jitter=0.2), evaluation_transform((8, 8))):
        copy = pickle.loads(pickle.dumps(transform))
        results = []
        for same in (transform, copy):
            torch.manual_seed(3)
            results.append(same(images, labels))
        assert_close(*results, rtol=0, atol=0)


def test_evaluation_resizes_images_alone():
    images, labels = painted(2, 20, 30, block=2)
    small, same = evaluation_transform((10, 12))(images, labels)
    assert_close(small, images_of(images.permute(0, 2, 3, 1), (10, 12)))
    assert torch.equal(same, labels.long())


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"crop": (0, 4)}, "crop: expected two positive integers"),
        ({"scale": (2.0, 1.0)}, "scale: expected two positive numbers"),
        ({"scale": (0.0, 1.0)}, "scale: expected two positive numbers"),
        ({"flip": 1.5}, "flip: expected a number from 0 to 1, got 1.5"),
        ({"jitter": -0.1}, "jitter: expected a number from 0 to 1, got -0.1"),
    ],
)
def test_bad_arguments_are_named(bad, expected):
    with pytest.raises(ValueError, match=expected):
        training_transform(**({"crop": (4, 4)} | bad))


def test_without_torchvision_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        training_transform((4, 4))
