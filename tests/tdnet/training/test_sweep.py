"""`tdnet sweep`: files that can be read, and a table from its trainings to its plot."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("omegaconf")
pytest.importorskip("torchvision")

from tdnet.checkpoints import load_checkpoint, save_checkpoint
from tdnet.data.clips import LabelledVideos
from tdnet.models import registry
from tdnet.training.assembly import make_task
from tdnet.training.config import ModelOptions, TrainingConfig
from tdnet.training.sweep import load_sweep, row_name, trainings

CONFIGS = Path(__file__).parents[3] / "configs"
GIVEN = ["data.root=/data"]
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("base", [None, "camvid/td4-lite0", "cityscapes/td4-bise18"])
def test_sweeps_of_the_repository_name_models_that_differ(path, base, monkeypatch):
    """With their own config, and with others."""
    monkeypatch.setattr(registry, "build", lambda config: config)
    sweep = load_sweep(path)
    config = path.parent / sweep.config if base is None else CONFIGS / f"{base}.yaml"
    needed = [f"{key}=teacher.safetensors" for key in sweep.needs]
    found = trainings(sweep, config, GIVEN + needed)
    models = [
        registry.build_model(t.config.model.name, 19, **t.config.model.options) for t in found
    ]
    told = [(model, t.config.loss) for model, t in zip(models, found, strict=True)]
    assert all(one not in told[:index] for index, one in enumerate(told))
    folders = [training.folder for training in found]
    assert len(set(folders)) == len(folders)
    rows = [row_name(t.name, evaluation) for t in found for evaluation in sweep.evaluations]
    assert all(list(numbers) == rows for numbers in sweep.paper.values())
    assert sweep.about


def test_the_paper_has_a_number_beside_every_row_of_its_tables():
    told = {path.stem for path in SWEEPS if load_sweep(path).paper}
    assert told == {"distillation", "stride", "shared", "surviving"}
    assert {path.stem for path in SWEEPS} == told | {"aggregation", "gap"}


def test_the_baseline_starts_where_the_first_path_does():
    sweep = load_sweep(CONFIGS / "sweeps" / "shared.yaml")
    first, *_, last = trainings(sweep, CONFIGS / "camvid" / "td4-lite0.yaml", GIVEN)
    assert (first.config.model.name, first.config.loss.teacher) == ("lite0", None)
    assert first.config.model.path_checkpoints == last.config.model.path_checkpoints[:1] != []


@pytest.mark.parametrize("name", ["td2-lite0", "lite0"])
def test_one_sub_network_starts_from_the_first_checkpoint(tmp_path, name):
    """Shared, or alone: with its features, and a head that has not learned, as independent ones."""
    single = registry.build_model("lite0", 3)
    files = [str(tmp_path / f"{index}.safetensors") for index in range(2)]
    for file in files:
        torch.nn.init.normal_(next(single.features.parameters()))
        save_checkpoint(single, file)
    videos = LabelledVideos((), ("a", "b", "c"), {})
    is_shared = name.startswith("td")
    options = ModelOptions(name, {"shared": True} if is_shared else {}, path_checkpoints=files)
    if not is_shared:
        with pytest.raises(ValueError, match="expected one for each path, got 2 for lite0 of 1"):
            make_task(TrainingConfig(options), videos)
        files.pop()
    model = make_task(TrainingConfig(options), videos).model
    if is_shared:
        (model,) = model.paths
    first = load_checkpoint(files[0])
    found = model.features.state_dict()
    assert all(torch.equal(found[key], value) for key, value in first.features.state_dict().items())
    if not is_shared:
        heads = zip(model.head.parameters(), first.head.parameters(), strict=True)
        assert not all(torch.equal(one, other) for one, other in heads)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainigs: {}", "trainigs: .*not in 'Sweep'"),
        ("trainings: {a: []}\nevaluations: {b: {gaps: 2}}", r"gaps: .*not in 'EvaluationOptions'"),
        ("evaluations: {b: {gap: 0}}", r"evaluations\.b\.gap: expected at least 1, got 0"),
        ("evaluations: {b: {gap: wide}}", r"evaluations\.b\.gap: .*'wide'.*Integer"),
        ("about: nothing", "trainings: expected some, or evaluations, got neither"),
        ("trainings: {a/b: []}", "rows: expected names of printable characters .*got 'a/b'"),
        ("baseline: a\ntrainings: {a: []}", "rows: expected a name for each, got 'a' twice"),
        ("trainings: {a: []}\nneeds: [loss.tutor]", "needs: expected keys of a config, got 'loss"),
        ("trainings: {a: []}\npaper: {mIoU: {b: 1}}", r"paper\.mIoU: expected some of a, got 'b'"),
        ("trainings: [", "sweep.yaml: "),
    ],
)
def test_what_a_sweep_cannot_be_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sweep(path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("distillation", ["loss.teacher=null"], r"loss\.teacher: expected a value in"),
        ("surviving", ["model.name=td2-lite0"], "surviving_paths: expected from 1 to 2 for td2"),
        ("shared", ["model.name=lite0"], r"model\.name: expected a TDNet .*got lite0"),
        ("stride", ["model.name=td9"], r"model\.name: expected one of"),
        ("gap", ["data.validation_split=null"], r"data\.validation_split: expected a part"),
    ],
)
def test_configs_that_do_not_go_with_a_sweep(name, settings, message):
    sweep = load_sweep(CONFIGS / "sweeps" / f"{name}.yaml")
    with pytest.raises(ValueError, match=message):
        trainings(sweep, CONFIGS / "camvid" / "td4-lite0.yaml", GIVEN + settings)


# --- The command ---------------------------------------------------------------------------------

CONFIG = """
model: {name: td2-espnetv2}
data: {format: folder, root: street, crop: [32, 48], workers: 0}
optimizer: {warm_up: 2}
steps: 2
batch_size: 2
device: cpu
"""
SWEEP = """
about: Of two strides and two gaps.
config: config.yaml
trainings:
  n=2: [model.options.pooling_stride=2]
  n=4: [model.options.pooling_stride=4]
evaluations:
  gap 1: {gap: 1}
  one path: {gap: 2, surviving_paths: 1}
paper:
  mIoU: {"n=2, gap 1": 80.0}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for module in ("cv2", "matplotlib"):
        pytest.importorskip(module)
    from tdnet.data.street_set import write_street_set

    write_street_set(tmp_path / "street", 2, 3, (48, 64), 0)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def steps(monkeypatch):
    """Numbers of the steps that are made."""
    from tdnet.training.optimization import Learner

    made = []
    learn = Learner.learn

    def counted(learner, images, labels):
        made.append(learner.step + 1)
        return learn(learner, images, labels)

    monkeypatch.setattr(Learner, "learn", counted)
    return made


def sweep(*settings, seeds=1, config=None):
    from tdnet.cli.sweep import run_sweep

    return run_sweep(Path("sweep.yaml"), Path("out"), config, seeds, settings)


def test_a_sweep_ends_in_a_table_and_goes_on_where_it_was(folder, steps, monkeypatch, capsys):
    from tdnet.cli.training_screen import TrainingScreen
    from tdnet.evaluation.report import read_result

    show = TrainingScreen.step

    def interrupt_the_second(screen, number, loss, rate):
        show(screen, number, loss, rate)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingScreen, "step", interrupt_the_second)
    assert sweep() == 128 + signal.SIGINT
    assert "interrupted (SIGINT); the same command goes on" in capsys.readouterr().err
    results = folder / "out" / "sweep"
    assert steps == [1, 2, 1]
    assert len(list(results.rglob("*.json"))) == 2
    assert sweep() == 0
    assert steps == [1, 2, 1, 2]
    made = {path.relative_to(results).as_posix(): path for path in results.rglob("*.json")}
    names = ["n=2, gap 1", "n=2, one path", "n=4, gap 1", "n=4, one path"]
    assert sorted(made) == [f"{name}/seed-0.json" for name in names]
    for name, path in made.items():
        result = read_result(path)
        gap, survivors = (1, 2) if "gap 1" in name else (2, 1)
        assert (result.gap, result.surviving_paths) == (gap, survivors)
        assert result.config.pooling_stride == int(name[2])
        assert result.settled_frames == (result.frames if survivors == 1 else result.frames - 1)
    text = (results / "results.md").read_text()
    assert text.startswith("Of two strides and two gaps.\n\n|  | data | mIoU |")
    assert [line.split(" | ")[0][2:] for line in text.splitlines()[4:8]] == names
    assert text.count("| 80.0 |") == 1
    assert (results / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_nothing_is_made_again_but_what_has_changed(folder, steps):
    from tdnet.evaluation.report import read_result

    assert sweep() == 0
    results = sorted((folder / "out" / "sweep").rglob("*.json"))
    times = {path: path.stat().st_mtime_ns for path in results}
    changed, *others = results
    changed.write_text(replace(read_result(changed), gap=3).to_json())
    assert sweep() == 0
    assert steps == [1, 2] * 2
    assert read_result(changed).gap == 1
    assert all(path.stat().st_mtime_ns == times[path] for path in others)


@pytest.mark.slow
def test_seeds_are_trainings_of_their_own(folder, steps):
    (folder / "sweep.yaml").write_text("trainings: {all: [], half: [data.motion_share=0.5]}")
    assert sweep("steps=1", "seed=3", seeds=2, config=Path("config.yaml")) == 0
    assert steps == [1] * 4
    folders = {path.name for path in (folder / "out" / "trainings").iterdir()}
    assert folders == {"base-3", "base-4", "data.motion_share=0.5-3", "data.motion_share=0.5-4"}
    one, other = (folder / "out" / "sweep" / "all" / f"seed-{seed}.json" for seed in (3, 4))
    assert json.loads(one.read_text())["confusions"] != json.loads(other.read_text())["confusions"]
    text = (folder / "out" / "sweep" / "results.md").read_text()
    assert "| over trainings | of each |" in text


def test_a_mistake_is_one_line(folder, steps, monkeypatch, capsys):
    def line():
        (text,) = capsys.readouterr().err.splitlines()
        return text

    assert sweep("stepz=1") == 1
    assert "stepz: " in line()
    (folder / "sweep.yaml").write_text("trainings: {a: []}")
    assert sweep() == 1
    assert "config: expected one in sweep.yaml or by --config, got none" in line()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sweep() == 1
    assert line() == "tdnet: error: sweep: expected one process, got 2"
    assert not steps
