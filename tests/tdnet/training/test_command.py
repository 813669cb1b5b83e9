"""`tdnet train` from a folder of files to weights, as a user runs it."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdnet.checkpoints import load_checkpoint

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")
pytest.importorskip("cv2")

from tdnet.data.street_set import write_street_set

CONFIG = """
model: {name: lite0}
data:
  format: folder
  root: street
  crop: [32, 48]
  workers: 0
optimizer: {warm_up: 2}
steps: 3
batch_size: 2
device: cpu
"""
RUN = "import sys; from tdnet.cli import main; sys.argv[0] = 'tdnet'; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("training")
    write_street_set(path / "street", 2, 3, (48, 64), 0)
    (path / "config.yaml").write_text(CONFIG)
    return path


def command(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "train", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, error = process.communicate()
    return process.returncode, out, error


def test_a_model_learns_from_a_folder(folder):
    code, out, error = finished(command(folder, "config.yaml", "-o", "run"))
    assert code == 0, error
    assert "step 3: mIoU" in out
    assert "weights: run/last.safetensors" in out
    made = {path.name for path in (folder / "run").iterdir()}
    expected = {"config.yaml", "losses.csv", "state.pt", "last.safetensors", "best.safetensors"}
    assert made - {"tensorboard"} == expected
    model = load_checkpoint(folder / "run" / "best.safetensors")
    assert model.config.num_classes == 19
    assert len((folder / "run" / "losses.csv").read_text().splitlines()) == 4


def test_its_paths_learn_together(folder):
    """Two stages: single frames, whose features are then the paths of a TDNet."""
    start = "model.path_checkpoints=[run/last.safetensors, run/best.safetensors]"
    settings = [start, "model.name=td2-lite0", "model.frozen=['paths.*.features']", "steps=1"]
    sets = [part for setting in settings for part in ("--set", setting)]
    if not (folder / "run").exists():
        test_a_model_learns_from_a_folder(folder)
    code, _, error = finished(command(folder, "config.yaml", "-o", "together", *sets))
    assert code == 0, error
    single = load_checkpoint(folder / "run" / "last.safetensors")
    paths = load_checkpoint(folder / "together" / "last.safetensors").paths
    for name, tensor in single.features.state_dict().items():
        assert torch.equal(tensor, paths[0].features.state_dict()[name]), name


def test_ctrl_c_keeps_the_state(folder):
    arguments = ["config.yaml", "-o", "stopped", "--set", "steps=1000"]
    process = command(folder, *arguments)
    losses = folder / "stopped" / "losses.csv"
    while not (losses.exists() and len(losses.read_text().splitlines()) > 2):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    code, _, error = finished(process)
    assert code == 128 + signal.SIGINT
    assert "interrupted (SIGINT); the same command goes on" in error
    steps = torch.load(folder / "stopped" / "state.pt", weights_only=True)["step"]
    assert steps >= 2
    assert len(losses.read_text().splitlines()) == steps + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "config: expected a YAML file, got 'none.yaml'"),
        (["config.yaml", "--set", "data.rot=1"], "data.rot: "),
        (["config.yaml", "--set", "data.root=nowhere"], "nowhere"),
        (["config.yaml", "--set", "data.format=film"], "got 'film'"),
        (["config.yaml", "--set", "model.name=td9"], "name: expected one of"),
        (["config.yaml", "--set", "model.checkpoint=none.safetensors"], "none.safetensors"),
        (["config.yaml", "--set", "loss.teacher=none.safetensors"], "none.safetensors"),
        (["config.yaml", "--set", "device=abacus"], "device: expected one that torch finds"),
        (["config.yaml", "--set", "model.options.foo=1"], "model.options: expected some of"),
        (["config.yaml", "--set", "model.backbone_weights=config.yaml"], "model.backbone_weights"),
        (["config.yaml", "--set", "seed=-1"], "seed: expected at least 0, got -1"),
    ],
)
def test_a_mistake_is_one_line(folder, arguments, message, monkeypatch, capsys):
    from tdnet.cli.train import run_training

    monkeypatch.chdir(folder)
    settings = [word for word in arguments[1:] if word != "--set"]
    assert run_training(arguments[0], Path("mistake"), settings) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tdnet: error: ")
    assert message in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line(folder, tmp_path, workers):
    """Whichever process reads it."""
    shutil.copytree(folder / "street", tmp_path / "street")
    for path in (tmp_path / "street").rglob("images/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "config.yaml").write_text(CONFIG)
    settings = ["--set", f"data.workers={workers}", "--set", "data.validation_split=null"]
    code, _, error = finished(command(tmp_path, "config.yaml", "-o", "run", *settings))
    assert code == 1
    (line,) = [line for line in error.splitlines() if line.strip()]
    assert line.startswith("tdnet: error: ")
    assert ".png" in line
