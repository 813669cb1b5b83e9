import numpy as np
import pytest
from PIL import Image

SIZE = (24, 40)


@pytest.fixture
def videos_folder(tmp_path):
    """Clips a (5 frames, 2 and 4 labelled) and b (1 frame, labelled), three classes."""
    random = np.random.default_rng(0)
    (tmp_path / "classes.txt").write_text("road\nsky\nrest\n")
    for clip, frames, labelled in (("a", range(5), (2, 4)), ("b", range(1), (0,))):
        for kind in ("images", "labels"):
            (tmp_path / "train" / clip / kind).mkdir(parents=True)
        for index in frames:
            image = random.integers(0, 256, (*SIZE, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / "train" / clip / "images" / f"{index}.png")
        for index in labelled:
            labels = random.choice(np.array((0, 1, 2, 7), np.uint8), SIZE)
            Image.fromarray(labels).save(tmp_path / "train" / clip / "labels" / f"{index}.png")
    return tmp_path
