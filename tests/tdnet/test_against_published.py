"""Our models against the published computation, frame by frame, through warm-up.

``PublishedDataflow`` writes that computation down once more, plainly, on weights with the
published names; it shares no code with ours. With TDNET_PUBLISHED_CODE naming a checkout of the
published code, that code itself is compared too.
"""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from tdnet import VideoSegmenter
from tdnet.checkpoints import from_published
from tdnet.evaluation import against_published
from tdnet.evaluation.against_published import relative_difference

HEIGHT, WIDTH = 65, 97
FEATURE_SIZE = (9, 13)
CLASSES = 5


class PublishedDataflow:
    """The published models as functions of a state dict that fills itself with random weights."""

    def __init__(self, name, seed=0):
        self.name = name
        self.state = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.queue = []

    def to_double(self):
        self.queue = []
        for name, tensor in self.state.items():
            self.state[name] = tensor.double() if tensor.is_floating_point() else tensor

    def frame(self, x, index):
        if self.name.startswith("pspnet"):
            logits = self.pspnet(x)
        elif self.name == "td4-psp18":
            logits = self.td4(x, index % 4 + 1)
        else:
            logits = self.td2(x, index % 2 + 1)
        return F.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)

    def pspnet(self, x):
        x = self.resnet(x, "pretrained", int(self.name.split("-")[1]))
        channels = x.shape[1]
        x = torch.cat([x, *self.branches(x, "head.conv5.0")], 1)
        x = self.norm(self.conv(x, "head.conv5.1", channels // 4, 3), "head.conv5.2").relu()
        return self.conv(x, "head.conv5.5", CLASSES, 1, bias=True)

    def td4(self, x, p):
        z = self.path_features(x, p, 18)
        q, v = self.query(z, p), self.value(z, p)
        if len(self.queue) == 3:
            (_, k1, v1), (q2, k2, v2), (q3, k3, v3) = self.queue
            following = [(p + hop - 1) % 4 + 1 for hop in (1, 2, 3)]
            carried = self.attention(q2, k1, v1, f"atn{p}_{following[0]}")
            carried = self.attention(q3, k2, carried + v2, f"atn{p}_{following[1]}")
            v = v + self.attention(q, k3, carried + v3, f"atn{p}_{following[2]}")
        self.remember(z, p, 3)
        return self.head(v, p, 4)

    def td2(self, x, p):
        z = self.path_features(x, p, 50)
        q, v = self.query(z, p), self.value(z, p)
        if self.queue:
            _, k1, v1 = self.queue[0]
            v = v + self.attention(q, k1, v1, f"atn{p}")
        self.remember(z, p, 1)
        return self.head(v, p, 2)

    def path_features(self, x, p, depth):
        x = self.resnet(x, f"pretrained{p}", depth)
        groups = [x, *self.branches(x, f"psp{p}")]
        first = (p - 1) % 2 == 0
        halves = []
        for group in groups:
            middle = group.shape[1] // 2
            halves.append(group[:, :middle] if first else group[:, middle:])
        return torch.cat(halves, 1)

    def branches(self, x, prefix):
        for number, bins in enumerate((1, 2, 3, 6), 1):
            y = F.adaptive_avg_pool2d(x, bins)
            y = self.conv(y, f"{prefix}.conv{number}.0", x.shape[1] // 4, 1)
            y = self.norm(y, f"{prefix}.conv{number}.1").relu()
            yield F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True)

    def query(self, z, p, letter="q"):
        prefix = f"enc{p}.w_{letter}s"
        x = self.norm(self.conv(z, f"{prefix}.0.conv", 64, 1, bias=True), f"{prefix}.0.bn")
        # Large weights, so that the attention is far from uniform.
        return self.conv(F.leaky_relu(x, 0.01), f"{prefix}.1.conv", 64, 1, bias=True, gain=3)

    def value(self, z, p):
        return self.conv(z, f"enc{p}.w_vs.0.conv", 512, 1, bias=True)

    def remember(self, z, p, capacity):
        z = F.max_pool2d(z, 1, stride=4)
        entry = (self.query(z, p), self.query(z, p, "k"), self.value(z, p))
        self.queue = [*self.queue, entry][-capacity:]

    def attention(self, q, k, v, name):
        rows = q.flatten(2).transpose(1, 2)
        affinity = torch.softmax(rows @ k.flatten(2) / 8, dim=2)
        x = (affinity @ v.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.conv(x.reshape(*v.shape[:2], *q.shape[2:]), f"{name}.fc.0.conv", 512, 1, True)

    def head(self, v, p, divisor):
        size = tuple(v.shape[-2:])
        weight = self.random(f"layer_norm{p}.ln.weight", size, 0.5, 1.5)
        bias = self.random(f"layer_norm{p}.ln.bias", size, -0.5, 0.5)
        mean = v.mean((2, 3), keepdim=True)
        variance = v.var((2, 3), keepdim=True, unbiased=False)
        x = (v - mean) / (variance + 1e-5).sqrt() * weight + bias
        x = self.norm(self.conv(x, f"head{p}.conv5.0", 512 // divisor, 3), f"head{p}.conv5.1")
        return self.conv(x.relu(), f"head{p}.conv5.4", CLASSES, 1, bias=True)

    def resnet(self, x, prefix, depth):
        if depth == 18:
            x = self.conv(x, f"{prefix}.conv1", 64, 7, stride=2)
        else:
            for index, channels, stride in ((0, 64, 2), (3, 64, 1), (6, 128, 1)):
                x = self.conv(x, f"{prefix}.conv1.{index}", channels, 3, stride=stride)
                if index < 6:
                    x = self.norm(x, f"{prefix}.conv1.{index + 1}").relu()
        x = self.norm(x, f"{prefix}.bn1").relu()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        counts = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
        block = self.basic if depth == 18 else self.bottleneck
        dilations = ([1] * counts[0], [1] * counts[1], [1] + [2] * (counts[2] - 1), [4, 8, 16])
        for stage in range(4):
            for index in range(counts[stage]):
                stride = 2 if stage == 1 and index == 0 else 1
                second = (1, 1, 2, 4)[stage]
                name = f"{prefix}.layer{stage + 1}.{index}"
                x = block(x, name, 64 << stage, stride, dilations[stage][index], second)
        return x

    def basic(self, x, name, channels, stride, first, second):
        y = self.conv(x, f"{name}.conv1", channels, 3, stride=stride, dilation=first)
        y = self.norm(y, f"{name}.bn1").relu()
        y = self.norm(self.conv(y, f"{name}.conv2", channels, 3, dilation=second), f"{name}.bn2")
        return (y + self.shortcut(x, name, channels, stride)).relu()

    def bottleneck(self, x, name, channels, stride, dilation, _):
        y = self.norm(self.conv(x, f"{name}.conv1", channels, 1), f"{name}.bn1").relu()
        y = self.conv(y, f"{name}.conv2", channels, 3, stride=stride, dilation=dilation)
        y = self.norm(y, f"{name}.bn2").relu()
        y = self.norm(self.conv(y, f"{name}.conv3", 4 * channels, 1), f"{name}.bn3")
        return (y + self.shortcut(x, name, 4 * channels, stride)).relu()

    def shortcut(self, x, name, channels, stride):
        if stride == 1 and x.shape[1] == channels:
            return x
        y = self.conv(x, f"{name}.downsample.0", channels, 1, stride=stride)
        return self.norm(y, f"{name}.downsample.1")

    def conv(self, x, name, channels, kernel, bias=False, stride=1, dilation=1, gain=1.0):
        shape = (channels, x.shape[1], kernel, kernel)
        bound = gain * (3 / (x.shape[1] * kernel * kernel)) ** 0.5
        weight = self.random(f"{name}.weight", shape, -bound, bound)
        offset = self.random(f"{name}.bias", (channels,), -0.2, 0.2) if bias else None
        # A 7x7 and a dilated 3x3 kernel are both padded to keep the size at stride 1.
        return F.conv2d(x, weight, offset, stride, dilation * (kernel // 2), dilation)

    def norm(self, x, name):
        count = (x.shape[1],)
        weight = self.random(f"{name}.weight", count, 0.3, 1.0)
        bias = self.random(f"{name}.bias", count, -0.2, 0.2)
        if f"{name}.running_mean" not in self.state:
            # Near the statistics of the first frame, as after training: otherwise the features
            # would be the same everywhere, and the attention would have nothing to choose from.
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            shift = 0.2 * variance.sqrt()
            self.state[f"{name}.running_mean"] = mean + shift * (
                torch.rand(count, generator=self.generator) - 0.5
            )
            self.state[f"{name}.running_var"] = (
                variance * (0.5 + torch.rand(count, generator=self.generator)) + 0.1
            )
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    def random(self, name, shape, low, high):
        if name not in self.state:
            values = torch.rand(shape, generator=self.generator)
            self.state[name] = values * (high - low) + low
        assert self.state[name].shape == shape
        return self.state[name]


def random_frames(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, HEIGHT, WIDTH, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("td4-psp18", 9),
        ("td2-psp50", 5),
        ("pspnet-18", 1),
        *(pytest.param(f"pspnet-{depth}", 1, marks=pytest.mark.slow) for depth in (50, 101)),
    ],
)
@torch.inference_mode()
def test_equals_published_dataflow(name, count):
    published = PublishedDataflow(name)
    frames = random_frames(count)
    for index, frame in enumerate(frames):
        published.frame(frame, index)
    published.to_double()
    # In float64, where rounding cannot hide a mistake: random deep networks amplify it.
    frames = [frame.double() for frame in frames]
    expected = [published.frame(frame, index) for index, frame in enumerate(frames)]
    segmenter = VideoSegmenter(from_published(published.state, name).double())
    got = [segmenter.logits(frame) for frame in frames]
    for a, b in zip(got, expected, strict=True):
        assert relative_difference(a, b) <= 1e-9
    # The past must matter in what was compared.
    if count > 1:
        segmenter.reset()
        for _ in range(count - 1):
            segmenter.logits(torch.zeros_like(frames[0]))
        assert relative_difference(segmenter.logits(frames[-1]), expected[-1]) > 1e-2


@pytest.mark.parametrize(
    ("name", "count"), [("td4-psp18", 9), ("td2-psp50", 5), ("pspnet-18", 1), ("pspnet-101", 1)]
)
def test_equals_published_code(name, count):
    code = os.environ.get("TDNET_PUBLISHED_CODE")
    if code is None:
        pytest.skip("TDNET_PUBLISHED_CODE does not name a checkout of the published TDNet code")

    def small_model():
        model = against_published.published_model(Path(code), name, CLASSES)
        for child_name, child in model.named_children():
            if child_name.startswith("layer_norm"):
                child.ln = nn.LayerNorm(FEATURE_SIZE)
        return model

    template = small_model()
    frames = random_frames(count)
    against_published.randomise(template, frames[: against_published.path_count(template)], 0)
    for optimized in (False, True):
        published = small_model()  # it remembers the frames
        published.load_state_dict(template.state_dict())
        compared = list(against_published.compare(published, name, frames, optimized))
        assert len(compared) == count
        assert max(frame.difference for frame in compared) <= 1e-4
    if count > 1:
        assert against_published.weight_of_the_past(published, name, frames) > 1e-2


class TestCommand:
    """The command with a stand-in for the published code: the same weights, our own numbers."""

    def run(self, monkeypatch, tmp_path, error=0.0, frames=2, options=()):
        class Published(nn.Module):
            def __init__(self):
                super().__init__()
                self.dataflow = PublishedDataflow("pspnet-18")
                self.dataflow.frame(torch.zeros(1, 3, HEIGHT, WIDTH), 0)

            def state_dict(self):
                return self.dataflow.state

            def load_state_dict(self, state):
                self.dataflow.state = state

            def forward(self, image, pos_id):
                return self.dataflow.frame(image, pos_id) * (1 + error)

        monkeypatch.setattr(against_published, "published_model", lambda *_: Published())
        for index in range(frames):
            Image.new("RGB", (40, 30), (index * 90, 100, 50)).save(tmp_path / f"{index}.png")
        app = against_published.typer.Typer()
        app.command()(against_published.main)
        size = f"{HEIGHT}x{WIDTH}"
        arguments = ["--code", str(tmp_path), "--model", "pspnet-18", "--frames", str(tmp_path)]
        return CliRunner().invoke(app, [*arguments, "--size", size, *options])

    @pytest.mark.parametrize("options", [(), ("--optimized",)])
    def test_equal(self, monkeypatch, tmp_path, options):
        result = self.run(monkeypatch, tmp_path, options=options)
        assert result.exit_code == 0, result.output
        assert result.output.count("frame ") == 2
        assert re.search(
            r"published [\d,]+ ms, ours [\d,]+ ms, [\d.]+x, medians of 1\n", result.output
        )

    @pytest.mark.parametrize("error", [1e-3, float("nan")])
    def test_different(self, monkeypatch, tmp_path, error):
        assert self.run(monkeypatch, tmp_path, error).exit_code == 1

    def test_no_frames(self, monkeypatch, tmp_path):
        result = self.run(monkeypatch, tmp_path, frames=0)
        assert result.exit_code == 2
        assert "no images" in result.output


def test_unknown_code_and_model(tmp_path):
    with pytest.raises(ValueError, match="Testing/model"):
        against_published.published_model(tmp_path, "td4-psp18")
    with pytest.raises(ValueError, match="expected one of td4-psp18"):
        against_published.published_model(tmp_path, "td3")
