"""The loop: what it changes, and that a training goes on as if it had never stopped."""

import csv
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch

from tdnet.checkpoints import load_checkpoint
from tdnet.training.config import OptimizerOptions
from tdnet.training.optimization import TrainingStopped, learning_rate
from tdnet.training.task import Task

PROGRAM = Path(small.__file__)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(folder, steps, batch=4, kind="plain", processes=1, **options):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command += ["--master-port=0", "--standalone"]
    command += [str(PROGRAM), str(folder), str(steps), str(batch), kind]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def losses(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def assert_same_training(first, second):
    """All that a training has become, bit by bit."""
    assert losses(first) == losses(second)
    states = [
        torch.load(folder / "state.pt", weights_only=True)["learner"] for folder in (first, second)
    ]
    found = [dict(tensors(state)) for state in states]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
    weights = [
        load_checkpoint(folder / "last.safetensors").state_dict() for folder in (first, second)
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def tensors(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors(item, f"{name}.{index}")


def test_the_loss_falls(tmp_path):
    told = small.train(small.small_config(steps=12), tmp_path)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 13))
    assert [loss for _, loss in losses(tmp_path)] == told
    assert sum(told[-3:]) < 0.85 * sum(told[:3])


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_training_that_was_stopped_goes_on_as_if_it_never_was(tmp_path, average):
    config = small.small_config(optimizer__average=average, accumulation=2)
    small.train(config, tmp_path / "whole")
    asked = iter([False, True, False, False, True])  # after steps 1, 2, 3, 4 and 5
    for _ in range(2):
        small.train(config, tmp_path / "parts", stop_requested=lambda: next(asked))
    small.train(config, tmp_path / "parts")
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    small.train(config, tmp_path / "parts")  # there is nothing left to do
    assert_same_training(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_it_never_was(tmp_path):
    steps = 7  # the state is written every second
    whole = start(tmp_path / "whole", steps)
    killed = start(tmp_path / "killed", steps)
    for line in killed.stdout:
        if int(line) == 5:
            killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert whole.wait() == 0, whole.stderr.read()
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["step"] in (2, 4)
    resumed = start(tmp_path / "killed", steps)
    assert resumed.wait() == 0, resumed.stderr.read()
    assert int(resumed.stdout.readline()) in (3, 5)
    assert_same_training(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_are_one_with_the_double_batch(tmp_path):
    one = start(tmp_path / "one", 3, kind="parallel")
    two = start(tmp_path / "two", 3, kind="parallel", processes=2)
    for process in (one, two):
        assert process.wait() == 0, process.stderr.read()
    expected, found = (dict(losses(tmp_path / name)) for name in ("one", "two"))
    assert found == pytest.approx(expected, rel=1e-5)
    weights = [
        load_checkpoint(tmp_path / name / "last.safetensors").state_dict()
        for name in ("one", "two")
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-6, msg=name)


def test_parts_of_a_batch_are_the_batch(tmp_path):
    """Labelled pixels weigh alike, however the windows are shared out."""

    def ignoring(config):
        make = small.batches(config)

        def some_ignored(processes, first, length):
            for images, labels in make(processes, first, length):
                labels[0, 4:] = 255
                yield images, labels

        return some_ignored

    found = []
    for count in (1, 2, 4):
        config = small.small_config(steps=2, accumulation=count)
        listener = small.Listener()
        small.run(
            *(config, tmp_path / str(count), small.without_dropout_and_norms, ignoring(config)),
            *(None, listener),
        )
        found.append(listener.losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_the_average_of_the_weights_is_kept(tmp_path):
    """Of the first steps almost nothing: the decay grows to the one that was asked for."""
    seen = []
    config = small.small_config(steps=4, optimizer__average=0.2)
    task = small.make_task()()
    listener = small.Listener(
        lambda _: seen.append({n: p.detach().clone() for n, p in task.model.named_parameters()})
    )
    small.train(config, tmp_path, lambda: task, listener)
    kept = dict(load_checkpoint(tmp_path / "last.safetensors").named_parameters())
    for name, first in seen[0].items():
        expected = first
        for later, decay in zip(seen[1:], (2 / 11, 0.2, 0.2), strict=True):
            expected = decay * expected + (1 - decay) * later[name]
        torch.testing.assert_close(kept[name].detach(), expected)


def test_what_is_frozen_stays(tmp_path):
    task = small.make_task()()
    task.freeze(["paths.*.features"])
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    small.train(small.small_config(steps=2), tmp_path, lambda: task)
    changed = {
        n for n, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[n])
    }
    assert changed
    assert not [name for name in changed if ".features." in name]
    assert any("encoding.query.norm.running_mean" in name for name in changed)
    with pytest.raises(ValueError, match=r"frozen: expected a pattern .* got 'pathes"):
        task.freeze(["pathes.*"])


def test_a_loss_that_is_no_number_stops_with_the_last_good_state(tmp_path):
    config = small.small_config()

    def some_nan(processes, first, length):
        batches = small.batches(config)(processes, first, length)
        for step, (images, labels) in enumerate(batches, first + 1):
            yield (images * float("nan") if step == 4 else images), labels

    with pytest.raises(
        TrainingStopped, match=r"step 4: expected a finite loss, got nan; .*state\.pt"
    ):
        small.run(config, tmp_path, small.make_task(), some_nan, None, small.Listener())
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    small.train(config, tmp_path)  # with better data it goes on
    small.train(config, tmp_path / "whole")
    assert_same_training(tmp_path, tmp_path / "whole")


def test_a_full_disk_stops_with_the_last_good_state(tmp_path):
    config = small.small_config()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(number):
        if number == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))

    try:
        with pytest.raises(TrainingStopped, match=r"step 4: cannot write .*; .* of before is kept"):
            small.train(config, tmp_path, listener=small.Listener(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [
        path for path in tmp_path.iterdir() if path.suffix == ".part" or path.name[0] == "."
    ]
    assert load_checkpoint(tmp_path / "last.safetensors")
    small.train(config, tmp_path)
    small.train(config, tmp_path / "whole")
    assert_same_training(tmp_path, tmp_path / "whole")


def test_another_training_in_the_folder_is_refused_by_name(tmp_path):
    small.train(small.small_config(steps=2), tmp_path)
    with pytest.raises(ValueError, match=r"expected optimizer.momentum: 0\.9 .* got 0\.8"):
        small.train(small.small_config(steps=2, optimizer__momentum=0.8), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="expected the state of a training, got a damaged file"):
        small.train(small.small_config(steps=2), tmp_path)


def test_the_best_model_is_kept(tmp_path):
    config = small.small_config(steps=4, validate_every=1)
    scores = iter([1.0, 3.0, 2.0, 0.5])
    listener = small.Listener()
    seen = []

    def validate(model):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(scores)

    small.run(config, tmp_path, small.make_task(), small.batches(config), validate, listener)
    assert listener.scores == [(1, 1.0), (2, 3.0), (3, 2.0), (4, 0.5)]
    best = load_checkpoint(tmp_path / "best.safetensors").state_dict()
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in best.items())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns(tmp_path, precision):
    told = small.train(small.small_config(steps=16, precision=precision), tmp_path)
    assert sum(told[-3:]) < 0.9 * sum(told[:3])


def test_single_frames_and_auxiliary_heads_learn(tmp_path):
    make = small.make_task("bisenet-18", auxiliary=0.4)
    told = small.train(small.small_config(steps=8), tmp_path, make)
    assert sum(told[-3:]) < 0.9 * sum(told[:3])
    assert isinstance(make(), Task)


def test_the_learning_rate_of_the_paper():
    options = OptimizerOptions(learning_rate=0.01, power=0.9)
    assert learning_rate(options, 100, 0) == 0.01
    assert learning_rate(options, 100, 75) == pytest.approx(0.01 * 0.25**0.9)
    options.warm_up = 4
    assert learning_rate(options, 100, 1) == pytest.approx(0.01 * 0.99**0.9 / 2)
    assert learning_rate(options, 100, 4) == pytest.approx(0.01 * 0.96**0.9)
