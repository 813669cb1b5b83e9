"""Configs: those of the repository, and what is refused by its name."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tdnet.architectures import MODELS
from tdnet.models.table import CITYSCAPES
from tdnet.training.config import as_yaml, load_config

pytest.importorskip("omegaconf")

CONFIGS = Path(__file__).parents[3] / "configs"
GIVEN = ["data.root=/data"]
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweeps")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configs_can_be_read(path):
    config = load_config(path, GIVEN)
    assert config.model.name in MODELS
    assert config.data.root == "/data"
    if config.loss.teacher is not None and not Path(config.loss.teacher).exists():
        _, data, name, _ = Path(config.loss.teacher).parts
        assert (CONFIGS / data / f"{name}.yaml").exists()


def test_every_model_of_the_paper_has_one():
    found = {load_config(path, GIVEN).model.name for path in FILES}
    assert found >= set(CITYSCAPES)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {name: td4-psp18}\ndata: {format: camvid, root: /data}\nsteps: 10\n")
    return path


def test_settings_replace_what_the_file_says(file):
    config = load_config(file, ["steps=20", "data.crop=[64, 96]", "optimizer.average=0.99"])
    assert (config.steps, config.data.crop, config.optimizer.average) == (20, [64, 96], 0.99)
    assert config.optimizer.momentum == 0.9


def test_what_is_written_is_read_again(file, tmp_path):
    config = load_config(file, ["model.options.pooling_stride=8", "model.frozen=['paths.*']"])
    (tmp_path / "again.yaml").write_text(as_yaml(config))
    assert asdict(load_config(tmp_path / "again.yaml")) == asdict(config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.crp=1", r"data\.crp: .*not in 'DataOptions'"),
        ("stepz=1", "stepz: .*not in 'TrainingConfig'"),
        ("steps=many", "steps: .*'many'.*Integer"),
        ("steps=0", "steps: expected at least 1, got 0"),
        ("data.crop=[1]", r"data\.crop: expected \[height, width\], got \[1\]"),
        ("data.scale=[2, 1]", r"data\.scale: expected \[least, largest\], got"),
        ("data.jitter=2", r"data\.jitter: expected a number from 0 to 1, got 2"),
        ("optimizer.average=1.5", r"optimizer\.average: expected a number between 0 and 1"),
        ("accumulation=3", "accumulation: expected a divisor of batch_size 8, got 3"),
        ("precision=float8", "precision: expected one of float32, bfloat16, float16, got 'float8'"),
        ("loss.weighing=both", r"loss\.weighing: expected one of student, teacher, got 'both'"),
        ("steps", "set: expected key=value, got 'steps'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(file, setting, message):
    with pytest.raises(ValueError, match=message):
        load_config(file, [setting])


def test_what_is_missing_is_named(file):
    file.write_text("model: {name: td4-psp18}\ndata: {format: camvid}\n")
    with pytest.raises(ValueError, match=r"data\.root: expected a value in .*, got none"):
        load_config(file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"config: expected a YAML file, got .*no such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"bad\.yaml: "):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match=r"list\.yaml: "):
        load_config(tmp_path / "list.yaml")
