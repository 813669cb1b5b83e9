"""The groups of a teacher's reduction, and what a TDNet says with and without its past."""

import pytest
import torch
import torch.nn.functional as F

from tdnet import build_model
from tdnet.models.layers import resize
from tdnet.training.teacher import Teacher

IMAGE = torch.randn(2, 3, 41, 50, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pspnet():
    torch.manual_seed(0)
    model = build_model("pspnet-18", 6).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_sum_to_the_whole(pspnet, groups):
    """Before the norm: f_1 + ... + f_m is the reduction of all features."""
    teacher = Teacher(pspnet, groups)
    reduced = []
    hook = pspnet.head.hidden.norm.register_forward_pre_hook(lambda _, x: reduced.append(x[0]))
    with hook:
        for group in range(groups):
            teacher(IMAGE.double(), group)
    # Of each call the group, then the whole.
    whole, of_groups = reduced[1], reduced[0::2]
    torch.testing.assert_close(sum(of_groups), whole)
    assert groups == 1 or not torch.allclose(of_groups[0], of_groups[1])


def test_a_group_has_a_slice_of_each_part(pspnet):
    """All else zero: the backbone's 512 channels, and 128 of each of four branches."""
    found = Teacher(pspnet, 4)(IMAGE.double(), 2)
    with torch.no_grad():
        features = pspnet.features(IMAGE.double())
        kept = torch.zeros_like(features)
        for start, size in ((0, 512), (512, 128), (640, 128), (768, 128), (896, 128)):
            part = slice(start + size // 2, start + 3 * size // 4)
            kept[:, part] = features[:, part]
        torch.testing.assert_close(found.group, pspnet.head(kept))
        torch.testing.assert_close(found.whole, pspnet.head(features))


@pytest.mark.parametrize("group", range(4))
def test_groups_of_the_published_training(pspnet, group):
    reduced = []
    hook = pspnet.head.hidden.norm.register_forward_pre_hook(lambda _, x: reduced.append(x[0]))
    with hook:
        Teacher(pspnet, 4, published=True)(IMAGE.double(), group)
        Teacher(pspnet, 4)(IMAGE.double(), (0, 2, 1, 3)[group])
    torch.testing.assert_close(reduced[0], 4 * reduced[2])


def test_a_teacher_does_not_learn(pspnet):
    teacher = Teacher(pspnet, 2).train()
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(IMAGE.double(), 0).group.requires_grad


def test_other_models_teach_as_a_whole():
    bisenet = build_model("bisenet-18", 6)
    found = Teacher(bisenet, 3)(IMAGE, 1)
    assert found.group is None
    with torch.no_grad():
        torch.testing.assert_close(found.whole, bisenet.coarse_logits(IMAGE))
    foreign = Teacher(torch.nn.Conv2d(3, 6, 1), 2)(IMAGE, 0)
    assert foreign.whole.shape == (2, 6, 41, 50)


def test_bad_groups(pspnet):
    with pytest.raises(ValueError, match=r"groups: expected a divisor of .*, got 3"):
        Teacher(pspnet, 3)
    with pytest.raises(ValueError, match="group: expected 0 to 1, got 2"):
        Teacher(pspnet, 2)(IMAGE.double(), 2)


def test_opinions_of_a_network_of_paths():
    torch.manual_seed(0)
    model = build_model("td2-bise34", 6, norm_size=(6, 7)).eval()
    clip = torch.stack((IMAGE, IMAGE.flip(-1)), 1)
    with torch.no_grad():
        whole, own = model.opinions(clip, 0)
        torch.testing.assert_close(resize(whole, (41, 50)), model(clip, 0))
        path = model.paths[0]
        _, value = path.encoding(path.features(clip[:, 1]))
        torch.testing.assert_close(own, path.head(path.norm(value)))
    assert not torch.allclose(whole, own)
    assert F.cross_entropy(own, torch.zeros(2, *own.shape[2:], dtype=torch.long)).isfinite()
