"""A tiny TDNet, and a tiny data set of one's own."""

import numpy as np
import pytest
import torch
from PIL import Image

from tdnet.architectures import ModelConfig
from tdnet.data.folder import folder
from tdnet.models import build

SIZE = (33, 49)
NAMES = ("sky", "road", "car")


@pytest.fixture(scope="session")
def tiny():
    """Two paths, with every weight so large that it counts."""
    torch.manual_seed(0)
    model = build(
        ModelConfig(
            "td2-bise34",
            "resnet-18",
            "bilateral",
            num_paths=2,
            head_channels=8,
            num_classes=len(NAMES),
            value_channels=8,
            norm_size=(5, 7),
        )
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for path in model.paths:
            for hop in path.hops:
                hop.phi.weight.normal_(std=2)
    return model.eval()


def write_clip(root, name, frames, labelled, seed):
    """Random frames 1.png, 2.png, ...; labels, with a few ignored pixels, of those named."""
    random = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / "val" / name / kind).mkdir(parents=True)
    for index in range(1, frames + 1):
        image = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "val" / name / "images" / f"{index}.png")
        labels = random.integers(0, len(NAMES), SIZE, dtype=np.uint8)
        labels[random.random(SIZE) < 0.1] = 255
        if index in labelled:
            Image.fromarray(labels).save(root / "val" / name / "labels" / f"{index}.png")


@pytest.fixture(scope="session")
def videos_root(tmp_path_factory):
    """A dense clip of 5 frames, and one of 7 of which the 4th and the 7th are labelled."""
    root = tmp_path_factory.mktemp("videos")
    (root / "classes.txt").write_text("\n".join(NAMES))
    write_clip(root, "a", 5, range(1, 6), seed=1)
    write_clip(root, "b", 7, (4, 7), seed=2)
    return root


@pytest.fixture(scope="session")
def videos(videos_root):
    return folder(videos_root, "val")
