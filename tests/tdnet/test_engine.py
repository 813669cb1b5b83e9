"""An optimised model gives the numbers of the model that it is of."""

import copy

import pytest
import torch
from torch import nn

from tdnet import VideoSegmenter, build_model, optimize, save_checkpoint
from tdnet.engine import FastConvolution
from tdnet.models import model_names

SIZE = (33, 65)


def make_model(name, **options):
    """With norms that are no identities."""
    torch.manual_seed(0)
    model = build_model(name, 11, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def logits_of(model, frames=5, dtype=torch.float32):
    segmenter = VideoSegmenter(model)
    images = torch.randn(frames, 1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return torch.cat([segmenter.logits(image.to(dtype)) for image in images]).double()


@pytest.mark.parametrize("name", model_names())
def test_every_model_streams_the_same_numbers(name):
    """With a few times the rounding of the model itself, which attention may magnify."""
    model = make_model(name)
    exact = logits_of(copy.deepcopy(model).double(), dtype=torch.float64)
    own, found = (
        (logits - exact).abs().max() / exact.abs().max()
        for logits in (logits_of(model), logits_of(optimize(model)))
    )
    assert found < 10 * own + 1e-5, f"{found:.1e} of the largest logit, the model itself {own:.1e}"


@pytest.mark.parametrize("options", [{"aggregation": "sta"}, {"shared": True}])
def test_every_form_of_a_model_streams_the_same_numbers(options):
    model = make_model("td2-bise34", **options)
    torch.testing.assert_close(logits_of(optimize(model)), logits_of(model), rtol=1e-4, atol=1e-4)


def test_the_model_itself_stays_as_it_was():
    model = make_model("td4-bise18").train()
    before = copy.deepcopy(model.state_dict())
    optimize(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", ["td4-psp18", "pspnet-101", "td4-bise18", "lite0"])
def test_no_norm_is_left_and_nothing_learns(name):
    fast = optimize(make_model(name))
    assert not fast.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_convolutions_of_3x3_run_by_winograds_algorithm_on_cpus():
    """Of the 17 of a ResNet-18 all but the stem and one that strides, and that of the head."""
    fast = optimize(make_model("pspnet-18"))
    convolutions = [module for module in fast.modules() if isinstance(module, FastConvolution)]
    assert sum(module.convolution is None for module in convolutions) == 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_convolved_as_before(dtype):
    fast = optimize(make_model("td2-bise34").to(dtype))
    convolutions = [module for module in fast.modules() if isinstance(module, FastConvolution)]
    assert all(module.convolution is not None for module in convolutions)
    assert VideoSegmenter(fast).step(torch.zeros(*SIZE, 3, dtype=torch.uint8)).shape == SIZE


def test_once_more_changes_nothing():
    fast = optimize(make_model("td2-psp50"))
    assert torch.equal(logits_of(optimize(fast), 2), logits_of(fast, 2))


def test_it_is_not_saved_as_a_checkpoint(tmp_path):
    file = tmp_path / "fast.safetensors"
    with pytest.raises(ValueError, match=r"^model: expected the weights of lite0, got others"):
        save_checkpoint(optimize(make_model("lite0")), file)
    assert not file.exists()
