import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tdnet import VideoSegmenter, build_model, load_checkpoint, save_checkpoint
from tdnet.architectures import BACKBONES, MODELS
from tdnet.models import SingleFrameModel, TDNet, build, model_names
from tdnet.models.backbone import Backbone, build_backbone
from tdnet.models.bilateral import AttentionRefinement, BilateralFeatures, FeatureFusion
from tdnet.models.blocks import project
from tdnet.models.encoding import Encoding
from tdnet.models.espnetv2 import EspnetFeatures
from tdnet.models.layers import SpatialLayerNorm
from tdnet.models.pyramid import BINS, PyramidPooling
from tdnet.models.resnet import ResNet


def randomise_norms(model):
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def small_models():
    """Models of the rows that are small enough for this, built once."""
    names = ("lite0", "espnetv2", "td2-lite0", "td2-espnetv2", "td4-bise18")
    torch.manual_seed(0)
    return {name: build_model(name, num_classes=3, **sizes_of(name)) for name in names}


def sizes_of(name):
    return {"norm_size": (5, 7)} if name.startswith("td") else {}


@pytest.mark.parametrize("name", ["lite0", "espnetv2", "td2-lite0", "td2-espnetv2", "td4-bise18"])
class TestSmallModels:
    """What a user does with a model: train, save, load, stream."""

    def test_steps_of_training_lower_the_loss(self, small_models, name):
        torch.manual_seed(0)
        model = small_models[name].train()
        shape = (2, model.num_paths, 3, 33, 49) if isinstance(model, TDNet) else (2, 3, 33, 49)
        images, labels = torch.randn(shape), torch.randint(3, (2, 33, 49))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
        losses = []
        for _ in range(6):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], losses

    def test_a_loaded_model_streams_as_the_saved_one(self, small_models, name, tmp_path):
        model = small_models[name].eval()
        save_checkpoint(model, tmp_path / "model.safetensors")
        loaded = load_checkpoint(tmp_path / "model.safetensors", name)
        assert loaded.config == model.config
        segmenters = [VideoSegmenter(x) for x in (model, loaded)]
        for frame in torch.randint(256, (5, 33, 49, 3), dtype=torch.uint8):
            labels, expected = (segmenter.step(frame) for segmenter in segmenters)
            assert labels.shape == (33, 49)
            assert (labels == expected).all()


@pytest.mark.parametrize("name", model_names())
@torch.inference_mode()
def test_output_has_the_size_of_the_input(name, device):
    model = build_model(name, num_classes=7).eval().to(device)
    shape = (1, model.num_paths, 3, 33, 58) if isinstance(model, TDNet) else (1, 3, 33, 58)
    logits = model(torch.randn(shape).to(device))
    assert logits.shape == (1, 7, 33, 58)
    assert logits.isfinite().all()


def test_unknown_model_names_the_known_ones():
    with pytest.raises(ValueError, match=r"name: .*td4-psp18, td2-psp50, pspnet-18.*'td5'"):
        build_model("td5")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pspnet-18", {"num_classes": 0}, "num_classes: expected an integer from 1 to .*, got 0"),
        ("pspnet-18", {"pooling_stride": 2}, "has no pooling_stride"),
        (
            "td4-psp18",
            {"aggregation": "add", "pooling_stride": 8},
            "td4-psp18 with aggregation add pools nothing and has no pooling_stride",
        ),
        ("td4-psp18", {"pooling_mode": "mean"}, "pooling_mode: expected .*, got 'mean'"),
        ("td4-psp18", {"norm_size": (9,)}, r"norm_size: expected \(height, width\), got \(9,\)"),
        ("td4-psp18", {"norm_size": (9, 0)}, r"norm_size\[1\]: expected an integer .*, got 0"),
        (
            "td4-psp18",
            {"pooling_stride": 0},
            "pooling_stride: expected an integer .*, got 0",
        ),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **options)


def test_a_backbone_that_is_never_dilated_has_no_pyramid():
    config = replace(MODELS["td2-psp50"], backbone="efficientnet-lite0")
    with pytest.raises(ValueError, match=r"features: expected bilateral or fpn .* got pyramid"):
        build(config)


@pytest.mark.parametrize("name", ["td4-psp18", "td4-bise18"])
@pytest.mark.parametrize("pooling_mode", ["subsample", "max"])
@pytest.mark.parametrize("stride", [4, 3])
@torch.inference_mode()
def test_clip_equals_stream(name, pooling_mode, stride, device):
    model = build_model(name, 5, pooling_mode=pooling_mode, pooling_stride=stride)
    randomise_norms(model).to(device)
    segmenter = VideoSegmenter(model)
    frames = torch.randn(6, 3, 41, 65).to(device)
    streamed = [segmenter.logits(frame[None]) for frame in frames]
    for last in (3, 4, 5):
        clip = frames[last - 3 : last + 1][None]
        torch.testing.assert_close(model(clip, path=last % 4), streamed[last], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(frames[None, :4]), model(frames[None, :4], path=3))


def test_gradients_reach_all_that_a_clip_uses(device):
    model = build_model("td2-psp50", 5).to(device)
    model(torch.randn(2, 2, 3, 33, 33).to(device), path=0).square().mean().backward()
    current, past = model.paths
    unused = ("encoding.key",)  # the current frame is not attended to
    for name, parameter in current.named_parameters():
        if not name.startswith(unused):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for name, parameter in past.named_parameters():
        used = name.startswith(("features", "encoding.key", "encoding.value"))
        assert (parameter.grad is not None) == used, name


@pytest.mark.parametrize(
    ("shape", "path", "message"),
    [
        ((1, 3, 3, 33, 33), None, r"expected \[B, 2, 3, H, W\]"),
        ((2, 3, 33, 33), None, r"expected \[B, 2, 3, H, W\]"),
        ((1, 2, 4, 33, 33), None, r"expected \[B, 2, 3, H, W\]"),
        ((1, 2, 3, 33, 33), 2, "path: expected 0 to 1, got 2"),
        ((1, 2, 3, 33, 33), -1, "path: expected 0 to 1, got -1"),
    ],
)
def test_bad_clips(shape, path, message):
    model = build_model("td2-psp50")
    with pytest.raises(ValueError, match=message):
        model(torch.randn(shape), path=path)


def test_incomplete_window():
    with pytest.raises(ValueError, match="window: expected 3 past frames, got 0"):
        build_model("td4-psp18").propagate([], 0)


def test_models_run_in_half_precision_types(device):
    model = build_model("td4-psp18", 5).eval().to(device)
    assert model.half().paths[0].encoding.value.weight.dtype == torch.float16
    model.to(torch.float64)
    logits = VideoSegmenter(model).logits(torch.randn(1, 3, 33, 33))
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_backbone_strides_and_dilations(depth):
    backbone = ResNet(depth, dilated=True).eval()
    plain = depth in (18, 34)
    convolution = "conv1" if plain else "conv2"
    dilations = [
        [getattr(block, convolution).dilation[0] for block in getattr(backbone, f"layer{stage}")]
        for stage in (3, 4)
    ]
    third = {18: 2, 34: 6, 50: 6, 101: 23}[depth]
    assert dilations == [[1] + [2] * (third - 1), [4, 8] if depth == 18 else [4, 8, 16]]
    if plain:
        assert {block.conv2.dilation[0] for block in backbone.layer4} == {4}
    assert isinstance(backbone.conv1, nn.Conv2d if plain else nn.Sequential)
    assert shapes_of(backbone) == [(17, 23), (9, 12), (9, 12), (9, 12)]


@pytest.mark.parametrize("depth", [18, 101])
def test_backbone_without_dilation(depth):
    backbone = ResNet(depth, dilated=False).eval()
    dilations = {m.dilation for m in backbone.modules() if isinstance(m, nn.Conv2d)}
    assert dilations == {(1, 1)}
    assert shapes_of(backbone) == [(17, 23), (9, 12), (5, 6), (3, 3)]


def shapes_of(backbone):
    """The sizes of its outputs for 65 x 90 pixels; their channels are as it says."""
    with torch.inference_mode():
        outputs = backbone(torch.zeros(1, 3, 65, 90))
    assert tuple(x.shape[1] for x in outputs) == backbone.channels
    return [tuple(x.shape[2:]) for x in outputs]


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("efficientnet-lite0", (24, 40, 112, 320), (1, 2, 2, 3, 3, 4, 1)),
        ("efficientnet-lite1", (24, 40, 112, 320), (1, 3, 3, 4, 4, 5, 1)),
        ("efficientnet-lite2", (24, 48, 120, 352), (1, 3, 3, 4, 4, 5, 1)),
    ],
)
def test_efficientnet_lite(name, channels, blocks):
    backbone = build_backbone(name, dilated=False).eval()
    assert backbone.channels == channels
    assert tuple(len(stage) for stage in backbone.stages) == blocks
    assert shapes_of(backbone) == [(17, 23), (9, 12), (5, 6), (3, 3)]
    with pytest.raises(ValueError, match=f"features: .* for {name}, which is never dilated"):
        build_backbone(name, dilated=True)


@torch.inference_mode()
def test_levels_of_odd_sizes_are_aligned():
    """What mirrors the image mirrors all maps, if it mirrors the kernels too."""
    backbone = randomise_norms(build_backbone("efficientnet-lite0", dilated=False)).eval()
    image = torch.randn(1, 3, 33, 65)
    outputs = backbone(image)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight.flip(3))
    for mirrored, output in zip(backbone(image.flip(3)), outputs, strict=True):
        torch.testing.assert_close(mirrored.flip(3), output, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 8])
def test_espnetv2_at_any_size(stride):
    features = EspnetFeatures(build_backbone("espnetv2", dilated=False), stride).eval()
    size = {2: (32, 33, 45), 8: (64, 9, 12)}[stride]
    with torch.inference_mode():
        assert features(torch.randn(1, 3, 65, 90)).shape == (1, *size)
    with pytest.raises(ValueError, match="dilated: expected False for espnetv2, got True"):
        build_backbone("espnetv2", dilated=True)


@pytest.mark.parametrize("name", ["lite0", "espnetv2"])
def test_every_weight_of_a_small_network_counts(name):
    model = build_model(name, 4)
    model(torch.randn(2, 3, 65, 65)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("features", ["fpn", "bilateral"])
@torch.inference_mode()
def test_a_backbone_is_a_module_and_a_row(monkeypatch, features):
    class Strides(Backbone):
        channels = (3, 3, 3, 3)

        def forward(self, x):
            return [x[..., ::stride, ::stride] for stride in (4, 8, 16, 32)]

    module = SimpleNamespace(build=lambda name, dilated: Strides())
    monkeypatch.setitem(sys.modules, "my_backbones", module)
    monkeypatch.setitem(BACKBONES, "strides", "my_backbones")
    config = replace(MODELS["td2-lite0"], backbone="strides", features=features, num_classes=3)
    model = build(config).eval()
    assert isinstance(model.paths[1].features.backbone, Strides)
    assert model(torch.randn(1, 2, 3, 65, 97)).shape == (1, 3, 65, 97)


def test_backbone_of_unknown_name():
    with pytest.raises(ValueError, match=r"backbone: expected one of resnet-18, .*, got 'vgg'"):
        build_backbone("vgg", dilated=False)


def test_backbone_of_unknown_depth():
    with pytest.raises(ValueError, match=r"depth: expected one of .*, got 19"):
        ResNet(19, dilated=True)


@torch.inference_mode()
def test_pyramid_halves_make_the_whole():
    whole = PyramidPooling(16).eval()
    halves = [PyramidPooling(16, kept_half=half).eval() for half in (0, 1)]
    x = torch.randn(2, 16, 7, 9)
    expected = whole(x)
    pieces = []
    for half in halves:
        half.load_state_dict(whole.state_dict())
        pieces.append(half(x).split([8, 2, 2, 2, 2], dim=1))
    joined = torch.cat([part for pair in zip(*pieces, strict=True) for part in pair], dim=1)
    torch.testing.assert_close(joined, expected)
    with pytest.raises(ValueError, match=r"kept_half: expected .*, got 2"):
        PyramidPooling(16, kept_half=2)


class ProjectedPyramid(nn.Module):
    """A projection of the features of a path, in blocks or joined."""

    def __init__(self, joined=False):
        super().__init__()
        torch.manual_seed(0)
        self.pyramid = PyramidPooling(16, kept_half=1)
        for branch in self.pyramid.branches:
            nn.init.constant_(branch.norm.bias, 1.0)  # so that ReLU leaves some of each
        self.convolution = nn.Conv2d(16, 12, 1)
        self.joined = joined

    def forward(self, x):
        if self.joined:
            return self.convolution(self.pyramid(x))
        return project(self.convolution, self.pyramid.blocks(x))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.float16, 4e-3),
        (torch.bfloat16, 3e-2),
    ],
)
def test_blocks_are_projected_as_joined_features(batch, layout, dtype, tolerance, device):
    torch.manual_seed(1)
    x = torch.randn(batch, 16, 7, 9).to(device, dtype)
    results = []
    for joined in (False, True):
        module = ProjectedPyramid(joined).eval().to(device, dtype, memory_format=layout)
        entered = x.clone(memory_format=layout).requires_grad_()
        out = module(entered)
        assert out.dtype == dtype
        parameters = list(module.parameters())
        (out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum().backward()
        results.append((out, entered.grad, *(parameter.grad for parameter in parameters)))
    for found, expected in zip(*results, strict=True):
        assert expected.any()
        # Of the largest number: those that cancel to almost nothing have the error of their terms.
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=atol)


def test_blocks_under_autocast():
    module, x = ProjectedPyramid().eval(), torch.randn(2, 16, 7, 9)
    for batch in (x, x[:1]):
        expected = module(batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = module(batch)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)


@torch.inference_mode()
def test_blocks_are_never_joined():
    pyramid = PyramidPooling(16, kept_half=0).eval()
    x = torch.randn(1, 16, 40, 50)
    blocks = pyramid.blocks(x)
    assert blocks.full.data_ptr() == x.data_ptr()
    assert [tuple(pooled.shape) for pooled in blocks.pooled] == [(1, 2, n, n) for n in BINS]
    assert blocks.shares.shape == (1, 50, 40, 50)
    torch.testing.assert_close(blocks.shares.sum(1), torch.full((1, 40, 50), 4.0))


@torch.no_grad()
def test_a_projection_of_blocks_is_compiled_and_exported():
    module = ProjectedPyramid().eval()
    for batch in (1, 2):
        x = torch.randn(batch, 16, 7, 9)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), module(x))
        # A batch of one is a program of its own, as for all that torch exports.
        sizes = dict.fromkeys((2, 3) if batch == 1 else (0, 2, 3), torch.export.Dim.DYNAMIC)
        program = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
        larger = torch.randn(batch * batch, 16, 11, 10)
        torch.testing.assert_close(program(larger), module(larger))


@pytest.mark.parametrize("pooling_mode", ["subsample", "max"])
def test_a_step_of_training_has_the_gradients_of_joined_features(pooling_mode, monkeypatch):
    torch.manual_seed(0)
    model = build_model("td2-psp50", 3, pooling_mode=pooling_mode, norm_size=(5, 7)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0
    clip, labels = torch.randn(2, 2, 3, 33, 49).double(), torch.randint(3, (2, 33, 49))

    def gradients():
        torch.manual_seed(0)  # of dropout
        model.zero_grad()
        nn.functional.cross_entropy(model(clip), labels).backward()
        return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    found = gradients()
    for path in model.paths:
        monkeypatch.setattr(path.features.pyramid, "blocks", path.features.pyramid)
    expected = gradients()
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-6, atol=1e-9 * largest, msg=name
        )


@pytest.mark.parametrize("mode", ["subsample", "max"])
@pytest.mark.parametrize("in_blocks", [False, True])
@torch.inference_mode()
def test_stored_frame_is_the_same_by_either_way(mode, in_blocks):
    encoding = randomise_norms(Encoding(8, 12, mode, 4)).eval()
    features = torch.randn(1, 8, 9, 13)
    if in_blocks:
        features = PyramidPooling(8, kept_half=0).eval().blocks(features)
    query, value = encoding(features)
    streamed = encoding.store(features, query, value)
    trained = encoding.encode_stored(features)
    assert streamed.value.shape == (1, 12, 3, 4)
    for part in ("query", "key", "value"):
        torch.testing.assert_close(getattr(streamed, part), getattr(trained, part))
    corner = (0, slice(None), slice(4, 8), slice(8, 12))
    window = value[corner].flatten(1)
    expected = window[:, 0] if mode == "subsample" else window.amax(1)
    torch.testing.assert_close(streamed.value[0, :, 1, 2], expected)


class TestSpatialLayerNorm:
    def test_own_size_is_layer_norm(self):
        own, expected = SpatialLayerNorm((5, 7)), nn.LayerNorm((5, 7))
        nn.init.normal_(expected.weight)
        nn.init.normal_(expected.bias)
        own.load_state_dict(expected.state_dict())
        x = torch.randn(2, 3, 5, 7)
        torch.testing.assert_close(own(x), expected(x))

    @pytest.mark.parametrize("size", [(9, 13), (3, 4), (1, 1), (5, 13)])
    @torch.inference_mode()
    def test_other_sizes_interpolate_the_affine(self, size):
        norm = SpatialLayerNorm((5, 7))
        norm.weight.zero_()
        norm.bias.copy_(torch.linspace(0, 1, 5)[:, None] + 10 * torch.linspace(0, 1, 7))
        x = torch.randn(1, 2, *size)
        rows, columns = torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1])
        expected = rows[:, None] + 10 * columns
        torch.testing.assert_close(norm(x), expected.expand(1, 2, *size))


@pytest.mark.parametrize("name", ["pspnet-18", "bisenet-18"])
def test_baselines_are_single_frame_models(name):
    assert isinstance(build_model(name), SingleFrameModel)


@torch.inference_mode()
def test_refinement_and_fusion_by_hand():
    """y = r sigmoid(norm(W mean(r))), and x + x sigmoid(E relu(S mean(x)))."""
    refine, fuse = randomise_norms(AttentionRefinement(6)).eval(), FeatureFusion(7).eval()
    x = torch.randn(2, 6, 5, 4)
    reduced = refine.reduce(x)
    weights = torch.einsum("oc,bc->bo", refine.weigh.weight[..., 0, 0], reduced.mean((2, 3)))
    norm = refine.norm
    weights = (weights - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(refine(x), reduced * weights.sigmoid()[..., None, None])
    joined = fuse.join(torch.cat((x, x[:, :1]), 1))
    hidden = fuse.squeeze(joined.mean((2, 3), keepdim=True)).relu()
    expected = joined * (1 + fuse.excite(hidden).sigmoid())
    torch.testing.assert_close(fuse(x, x[:, :1]), expected)


def test_every_weight_of_bilateral_features_counts():
    features = BilateralFeatures(ResNet(18, dilated=False))
    assert features(torch.randn(2, 3, 65, 90)).shape == (2, 256, 9, 12)
    features(torch.randn(2, 3, 65, 90)).square().mean().backward()
    for name, parameter in features.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
