"""A model with its loss: what of it learns, and what it looks at."""

import pytest
import torch
from small import SIZE, make_task, small_config, small_model, train
from torch import nn

from tdnet.training.config import TrainingConfig
from tdnet.training.losses import Distillation
from tdnet.training.optimization import Learner, TrainingStopped
from tdnet.training.processes import Processes
from tdnet.training.task import Task
from tdnet.training.teacher import Teacher

ONE = Processes(0, 1, torch.device("cpu"))


def windows(task, batch=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, task.window_length, 3, *SIZE, generator=generator)
    return images, torch.randint(3, (batch, *SIZE), generator=generator)


@pytest.mark.parametrize(("own", "seen"), [(0.0, 1), (0.5, 2)])
def test_the_head_sees_the_current_frame_alone_only_if_the_loss_asks(own, seen):
    task = make_task(form=Distillation(own=own))()
    task(*windows(task), path=1).backward()
    assert task.model.paths[1].head.hidden.norm.num_batches_tracked == seen


def test_a_teacher_without_groups_needs_no_group():
    teacher = Teacher(small_model("espnetv2"), 2)
    task = make_task(teacher=teacher)()
    loss = task(*windows(task), path=0)
    assert loss > 0
    assert task.model.paths[0].head.hidden.norm.num_batches_tracked == 1
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    loss.backward()
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_frozen_norms_stay_frozen_as_those_of_several_gpus():
    task = make_task()()
    task.freeze(["paths.0.features"], norms=True)
    task = nn.SyncBatchNorm.convert_sync_batchnorm(task)
    task.train()
    norms = [part for part in task.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert not any(x.requires_grad for norm in norms for x in norm.parameters())


def test_auxiliary_heads_of_a_shared_network():
    from dataclasses import replace

    from tdnet.architectures import MODELS
    from tdnet.models.registry import build

    config = replace(MODELS["td4-bise18"], num_classes=3, value_channels=16, shared=True)
    task = Task(build(replace(config, norm_size=(4, 6))), auxiliary=0.4)
    for path in (0, 3):
        assert task(*windows(task), path=path).isfinite()
    assert task.auxiliary._seen == [None]


def test_a_batch_that_cannot_be_shared_out_is_refused():
    config = TrainingConfig(batch_size=8, accumulation=4)
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of .* 8, got 4"):
        Learner(
            TrainingConfig(batch_size=4, accumulation=4), make_task()(), Processes(0, 2, ONE.device)
        )
    Learner(config, make_task()(), ONE)


def test_a_part_of_one_window_is_too_few_for_norms_of_whole_maps(tmp_path):
    config = small_config(batch_size=2, accumulation=2)
    with pytest.raises(TrainingStopped, match="batch_size: expected 2 windows or more at once"):
        train(config, tmp_path, make_task("bisenet-18"))


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    config = small_config(save_every=1, optimizer__learning_rate=1e30)
    with pytest.raises(TrainingStopped, match=r"expected (a finite loss|finite weights)"):
        train(config, tmp_path)
    assert not (tmp_path / "state.pt").exists() or all(
        x.isfinite().all()
        for x in torch.load(tmp_path / "state.pt", weights_only=True)["learner"]["task"].values()
    )


def test_remains_of_a_killed_writing_are_removed(tmp_path):
    (tmp_path / ".state.pt.0123abcd.pt").write_bytes(b"half")
    (tmp_path / ".mine").write_text("stays")
    train(small_config(steps=1), tmp_path)
    assert {path.name for path in tmp_path.glob(".*")} == {".mine"}
