"""What looks like a known block and computes something else is left as it is, and told why."""

import functools
import re

import paper_blocks
import pytest
import torch
from packages import load
from torch import nn
from torch.nn import functional as F

from tdnet_ops import attention_propagate, spatial_pool
from tdnet_ops.swap import register, swap

# --- Wrong conversions of a block that starts at zero ---------------------------------------------


class Gated(nn.Module):
    """q and k have the same shape, the gate starts at zero: a wrong mapping changes nothing yet."""

    def __init__(self, channels=8, dropout=0.0):
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.gate = nn.Parameter(torch.zeros(1))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        q = self.norm(self.query(x)).flatten(2)
        k, v = (self.pool(self.norm(part(x))).flatten(2) for part in (self.key, self.value))
        attention = self.dropout((q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1))
        return x + self.gate * (attention @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def parts_of(block, x):
    q = block.norm(block.query(x))
    return q, block.pool(block.norm(block.key(x))), block.pool(block.norm(block.value(x)))


def right(block, x):
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k, v * block.gate, x)


def roles_swapped(block, x):
    q = block.norm(block.key(x))
    k, v = (block.pool(block.norm(part(x))) for part in (block.query, block.value))
    return attention_propagate(q, k, v * block.gate, x)


def keys_as_values(block, x):
    q, v, k = parts_of(block, x)
    return attention_propagate(q, k, v * block.gate, x)


def without_scale(block, x):
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k, v * block.gate, x, scale=1.0)


def without_gate(block, x):
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k, v, x)


def gate_without_gradient(block, x):
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k, v * block.gate.detach(), x)


def gate_as_magnitude(block, x):
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k, v * block.gate.abs(), x)


def without_residual(block, x):
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k, v * block.gate)


def pooled_by_ceiling(block, x):
    q = block.norm(block.query(x))
    k, v = (spatial_pool(block.norm(part(x)), 2) for part in (block.key, block.value))
    return attention_propagate(q, k, v * block.gate, x)


def norm_updated_once_less(block, x):
    q, k = block.norm(block.query(x)), block.norm(block.key(x))
    v = F.batch_norm(
        block.value(x),
        None if block.training else block.norm.running_mean,
        None if block.training else block.norm.running_var,
        block.norm.weight,
        block.norm.bias,
        training=block.training,
    )
    return attention_propagate(q, block.pool(k), block.pool(v) * block.gate, x)


def norm_folded_in_training(block, x):
    block.norm.eval()
    out = right(block, x)
    block.norm.train(block.training)
    return out


def over_queries(block, x):
    """The softmax over the wrong axis."""
    q, k, v = (part.flatten(2) for part in parts_of(block, x))
    attention = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(1)
    return x + block.gate * (attention @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def with_weights(block, x):
    out = right(block, x)
    return out, out


def one_image(block, x):
    """Reads the keys of the first image for all."""
    q, k, v = parts_of(block, x)
    return attention_propagate(q, k[:1], v[:1] * block.gate, x)


def failing(block, x):
    raise RuntimeError("no such thing")


DIFFERS = r" differs by [\d.e+-]+ of its magnitude \(batch [12], \d+ x \d+, (train|eval)\)$"
WRONG = {
    roles_swapped: "its output" + DIFFERS,
    keys_as_values: "its output" + DIFFERS,
    without_scale: "its output" + DIFFERS,
    without_gate: "its output" + DIFFERS,
    gate_without_gradient: r"the gradient of gate differs \(",
    gate_as_magnitude: "its output" + DIFFERS,
    without_residual: "its output" + DIFFERS,
    pooled_by_ceiling: "its output" + DIFFERS,
    norm_updated_once_less: r"norm\.\w+" + DIFFERS,
    norm_folded_in_training: "its output" + DIFFERS.replace("(train|eval)", "train"),
    over_queries: "its output" + DIFFERS,
    with_weights: "one forward gives its output, its output",
    one_image: "its output" + DIFFERS.replace("[12]", "2"),
    failing: r"the fused forward fails \(batch 1, .*\): RuntimeError: no such thing",
}


def refusal_of(block, cls=None, forward=None):
    if forward is not None:
        register(cls, lambda block: forward)
    _, report = swap(block)
    (entry,) = report.entries
    return entry.refusal


def test_the_right_conversion_is_kept():
    assert refusal_of(Gated(), Gated, right) is None


@pytest.mark.parametrize("forward", WRONG, ids=lambda forward: forward.__name__)
def test_a_wrong_conversion_is_refused_with_its_size(forward):
    refusal = refusal_of(Gated(), Gated, forward)
    assert refusal is not None
    assert re.match(WRONG[forward], refusal), refusal


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_compared_whatever_the_mode_of_the_caller(mode):
    with mode():
        assert refusal_of(Gated(), Gated, right) is None
        assert re.match(
            WRONG[gate_without_gradient], refusal_of(Gated(), Gated, gate_without_gradient)
        )


def test_dropout_on_the_affinity_is_refused():
    refusal = refusal_of(Gated(dropout=0.1), Gated, right)
    assert re.match("its output" + DIFFERS.replace("(train|eval)", "train"), refusal), refusal


class DividedByN(Gated):
    def forward(self, x):
        q = self.norm(self.query(x)).flatten(2)
        k, v = (self.pool(self.norm(part(x))).flatten(2) for part in (self.key, self.value))
        attention = q.transpose(1, 2) @ k / k.shape[-1]
        return x + self.gate * (attention @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Rescaled(Gated):
    def forward(self, x):
        return Gated.forward(self, x) / 2**0.5


class TopK(Gated):
    """Reads the 40 strongest keys, as many as there are on a small map."""

    def forward(self, x):
        q, k, v = (part.flatten(2) for part in parts_of(self, x))
        affinity = q.transpose(1, 2) @ k * q.shape[1] ** -0.5
        strongest, indices = affinity.topk(min(40, affinity.shape[-1]))
        attention = torch.zeros_like(affinity).scatter(2, indices, strongest.softmax(-1))
        return x + self.gate * (attention @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("cls", [DividedByN, Rescaled, TopK])
def test_another_normalisation_is_refused(cls):
    assert re.match("its output" + DIFFERS, refusal_of(cls(), cls, right))


class Remembers(Gated):
    def forward(self, x):
        q, k, v = (part.flatten(2) for part in parts_of(self, x))
        self.attention = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
        out = self.attention @ v.transpose(1, 2)
        return x + self.gate * out.transpose(1, 2).reshape(x.shape)


def test_attention_weights_left_on_the_block_are_a_reason_to_refuse():
    refusal = refusal_of(Remembers(), Remembers, right)
    assert refusal.startswith("attribute attention differs by ")


def test_and_so_are_weights_that_are_returned():
    paper_blocks.register_all()
    refusal = refusal_of(paper_blocks.SpaceTimeMemoryReadWithWeights())
    assert refusal.startswith("one forward gives its output, its output[0], its output[1]")


def test_the_strongest_keys_are_not_all_keys():
    paper_blocks.register_all()
    assert re.match("its output" + DIFFERS, refusal_of(paper_blocks.CorrespondenceRead(top_k=50)))


# --- Known classes whose forward is another -------------------------------------------------------


def test_a_subclass_is_not_the_class():
    register(Gated, lambda block: right)

    class Subclass(Gated):
        pass

    assert refusal_of(Subclass()) == (
        f"its forward is not the one known: a subclass of {__name__}.Gated"
    )


def test_a_forward_replaced_on_the_instance():
    register(Gated, lambda block: right)
    block = Gated()
    block.forward = functools.partial(Gated.forward, block)
    assert refusal_of(block) == "its forward was replaced on the instance"


@pytest.mark.parametrize("honest", [True, False])
def test_a_forward_replaced_on_the_class(monkeypatch, honest):
    register(Gated, lambda block: right)
    original = Gated.forward

    def halved(self, x):
        return original(self, x) / 2

    # With wraps, inspect would show the source of the original.
    monkeypatch.setattr(Gated, "forward", halved if honest else functools.wraps(original)(halved))
    assert refusal_of(Gated()).startswith("its forward is not the one known (source ")


def test_another_class_of_the_same_name():
    timm = load("timm.layers.non_local_attn")
    disguised = type("NonLocalAttn", (Gated,), {"__module__": timm.__name__})
    assert refusal_of(disguised()).startswith("its forward is not the one known (source ")


def test_methods_that_forward_depends_on_count(monkeypatch):
    cls = load("mmcv.cnn.bricks.non_local").NonLocal2d
    block = cls(8)
    block.embedded_gaussian = lambda theta, phi: (theta @ phi).softmax(-2)
    assert refusal_of(block) == "its embedded_gaussian was replaced on the instance"
    monkeypatch.setattr(cls, "embedded_gaussian", lambda _, theta, phi: (theta @ phi).softmax(-2))
    assert refusal_of(cls(8)).startswith("its forward is not the one known (source ")


def test_a_part_that_does_more_than_its_name_says_is_called():
    """z strided and t over 3 x 3 pixels stay what they are."""
    block = load("timm.layers.non_local_attn").NonLocalAttn(8)
    block.t = nn.Conv2d(8, 8, 3, padding=1)
    block.z = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid())
    x = torch.randn(2, 8, 7, 5)
    torch.nn.init.normal_(block.norm.weight)
    fused, report = swap(block)
    assert report.fused
    torch.testing.assert_close(fused(x), block(x))


# --- Blocks of packages that only look alike ------------------------------------------------------


def disentangled():
    """mmseg's DNL: a NonLocal2d whitened, with a unary term, and a temperature."""
    cls = load("mmcv.cnn.bricks.non_local").NonLocal2d

    class DisentangledNonLocal2d(cls):
        def embedded_gaussian(self, theta_x, phi_x):
            return (torch.matmul(theta_x, phi_x) / 0.05).softmax(-1)

    return DisentangledNonLocal2d(8)


def mmcv(mode):
    return lambda: load("mmcv.cnn.bricks.non_local").NonLocal2d(8, mode=mode)


def windows():
    """CFFM: attention within windows of 2 x 2 pixels."""
    return Windows(8)


class Windows(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x):
        rows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).permute(0, 2, 3, 4, 1)
        q, k, v = self.qkv(rows).chunk(3, -1)
        return F.softmax(q @ k.transpose(-1, -2), -1) @ v


def diffusers(**settings):
    def make():
        module = load("diffusers.models.attention_processor")
        processor = getattr(module, settings.pop("processor", "AttnProcessor2_0"))()
        return module.Attention(16, heads=1, dim_head=16, processor=processor, **settings)

    return make


def segformer(**settings):
    def make():
        module = load("transformers.models.segformer.modeling_segformer")
        config = load("transformers").SegformerConfig(**settings)
        return module.SegformerAttention(config, 16, 2, 2)

    return make


def pvt_with_dropout():
    module = load("transformers.models.pvt.modeling_pvt")
    config = load("transformers").PvtConfig(attention_probs_dropout_prob=0.1)
    return module.PvtEfficientSelfAttention(config, 16, 2, 2)


UNKNOWN = "it computes attention, but its class is not known"
ALIKE = {
    "mmcv dot_product": (mmcv("dot_product"), "mode 'dot_product' divides by the number of keys"),
    "mmcv concatenation": (mmcv("concatenation"), "mode 'concatenation' divides by the number"),
    "mmseg DNL": (disentangled, "its forward is not the one known: a subclass of mmcv.cnn."),
    "smp PAB": (
        lambda: load("segmentation_models_pytorch.decoders.manet.decoder").PABBlock(8),
        "one softmax over all pairs of pixels",
    ),
    "timm BAT": (
        lambda: load("timm.layers.non_local_attn").BatNonLocalAttn(8),
        "bilinear transforms of rows and columns",
    ),
    "diffusers rescaled": (diffusers(rescale_output_factor=2.0), "its output is divided by 2.0"),
    "diffusers cross": (diffusers(cross_attention_dim=8), "its keys are not of the map"),
    "diffusers norms": (diffusers(qk_norm="layer_norm"), "it has a norm_q"),
    "diffusers shared keys": (diffusers(kv_heads=2), "several heads share keys"),
    "diffusers processor": (diffusers(processor="FusedAttnProcessor2_0"), "its processor is diff"),
    "SegFormer weights": (segformer(attn_implementation="eager"), "it returns its attention w"),
    "SegFormer dropout": (
        segformer(attn_implementation="sdpa", attention_probs_dropout_prob=0.2),
        "dropout of 0.2 on the affinity in training",
    ),
    "PVT dropout": (pvt_with_dropout, "dropout of 0.1 on the affinity in training"),
    "DANet channel": (lambda: paper_blocks.ChannelAttention(8), UNKNOWN),
    "CFFM windows": (windows, UNKNOWN),
    "torch MultiheadAttention": (lambda: nn.MultiheadAttention(8, 2), UNKNOWN),
}


@pytest.mark.parametrize("name", ALIKE)
def test_it_is_refused_with_the_reason(name):
    make, reason = ALIKE[name]
    _, report = swap(nn.Sequential(make()))
    assert [entry.name for entry in report.entries] == ["0"]
    assert report.entries[0].refusal.startswith(reason)


def test_other_modules_are_not_mentioned():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Softmax(1), nn.Bilinear(3, 3, 3)
    )
    assert swap(model)[1].entries == ()
