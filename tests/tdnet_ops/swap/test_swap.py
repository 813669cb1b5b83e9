"""swap, restore, register: what holds for every block."""

import copy
import io
import pickle

import paper_blocks
import pytest
import torch
from blocks import randomise
from paper_blocks import ChannelAttention, PositionAttention, position_attention
from torch import nn

from tdnet_ops.swap import Refused, explain, original_forward, register, restore, swap

paper_blocks.register_all()


def a_model():
    return nn.Sequential(nn.Conv2d(3, 16, 3), PositionAttention(16), ChannelAttention(16))


@pytest.fixture
def model():
    return randomise(a_model())


@pytest.fixture
def x():
    return torch.randn(2, 3, 9, 11)


def is_fused(block):
    return type(block).__name__.startswith("Fused")


def test_the_report_names_every_block_in_order(model):
    _, report = swap(model)
    assert [(entry.name, entry.refusal is None) for entry in report.entries] == [
        ("1", True),
        ("2", False),
    ]
    assert str(report).splitlines() == [
        "1 (paper_blocks.PositionAttention): fused",
        "2 (paper_blocks.ChannelAttention): refused: it computes attention, but its class is not "
        "known",
    ]


def test_a_copy_shares_parameters_and_buffers(model, x):
    model[0] = nn.Sequential(model[0], nn.BatchNorm2d(16))
    fused, _ = swap(model)
    assert not is_fused(model[1])
    assert is_fused(fused[1])
    tensors = [list(one.state_dict(keep_vars=True).values()) for one in (model, fused)]
    assert all(one is other for one, other in zip(*tensors, strict=True))
    fused(x)
    assert model[0][1].num_batches_tracked == 1
    model.eval()
    assert fused.training


def test_in_place_it_is_the_same_block(model):
    block, parameters = model[1], list(model.parameters())
    fused, _ = swap(model, inplace=True)
    assert fused is model
    assert fused[1] is block
    assert isinstance(block, PositionAttention)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


def test_a_block_alone_is_a_model(x):
    fused, report = swap(PositionAttention(16))
    assert is_fused(fused)
    assert report.entries[0].name == ""


def test_an_optimizer_goes_on(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    swap(model, inplace=True)
    before = model[1].query.weight.clone()
    model(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[1].query.weight, before)


def test_strict_raises_and_changes_nothing(model):
    with pytest.raises(ValueError, match=r"model: expected all attention fused, got\n2 \("):
        swap(model, inplace=True, strict=True)
    assert not is_fused(model[1])
    swap(nn.Sequential(model[1]), strict=True)


def test_swapped_and_restored_twice_it_is_the_same(model, x):
    expected = model(x)
    once, _ = swap(model)
    twice, report = swap(once)
    assert [entry.name for entry in report.fused] == ["1"]
    torch.testing.assert_close(twice(x), expected)
    for _ in range(2):
        assert restore(twice) is twice
        assert type(twice[1]) is PositionAttention
    torch.testing.assert_close(twice(x), expected, rtol=0, atol=0)


def test_a_fused_block_stays_fused_under_deepcopy_and_pickle(model, x):
    fused, _ = swap(model)
    saved = io.BytesIO()
    torch.save(fused, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(saved, weights_only=False),
    ]
    for one in copies:
        assert is_fused(one[1])
        assert one[1].query.weight is not model[1].query.weight
        torch.testing.assert_close(one(x), model(x))
        assert type(restore(one)[1]) is PositionAttention


def test_it_moves_and_changes_dtype(model, x):
    fused, _ = swap(model)
    expected = model.double()(x.double())
    fused.double()
    torch.testing.assert_close(fused(x.double()), expected)


def test_random_numbers_of_the_caller_go_on(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    swap(model)
    assert torch.equal(torch.rand(1), expected)


def test_nothing_of_the_model_changes(model):
    before = copy.deepcopy(model.state_dict())
    grads = [p.requires_grad_(i % 2 == 0).requires_grad for i, p in enumerate(model.parameters())]
    swap(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [p.requires_grad for p in model.parameters()] == grads


def test_hooks_of_the_block_and_its_parts_stay(model, x):
    seen = []
    for part in (model[1], model[1].query):
        part.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    fused, report = swap(model)
    assert report.fused
    assert seen == []
    fused(x)
    assert seen == ["Conv2d", "FusedPositionAttention"]


def test_hooks_on_a_part_that_would_not_be_called_are_a_reason_to_refuse(model):
    model[1].softmax.register_forward_hook(lambda *_: None)
    _, report = swap(model)
    assert report.refused[0].refusal == (
        "softmax has hooks, and the fused forward does not call it"
    )


def test_such_hooks_are_called_if_they_come_later(model, x):
    fused, _ = swap(model)
    seen = []
    handle = fused[1].softmax.register_forward_hook(lambda *_: seen.append(1))
    expected = fused(x)
    assert seen == [1]
    handle.remove()
    torch.testing.assert_close(fused(x), expected)
    assert seen == [1]


def test_parametrized_parts_are_fused(model, x):
    nn.utils.parametrizations.weight_norm(model[1].query)
    nn.utils.spectral_norm(model[1].value)
    model(x)  # With a gradient, so that deepcopy refuses the weight.
    fused, report = swap(model.eval())
    assert [entry.name for entry in report.fused] == ["1"], report
    torch.testing.assert_close(fused(x), model(x))


def test_parametrizations_of_the_block_itself_are_not(model):
    nn.utils.parametrize.register_parametrization(model[1], "gamma", nn.Softplus())
    _, report = swap(model)
    assert report.refused[0].refusal == "it has parametrizations of its own"


def test_parametrized_after_it_was_fused_it_cannot_be_restored(model):
    fused, _ = swap(model)
    nn.utils.parametrize.register_parametrization(fused[1], "gamma", nn.Softplus())
    with pytest.raises(ValueError, match="block: expected no parametrizations since it was fused"):
        restore(fused)


def test_a_shared_block_is_fused_once(x):
    block = PositionAttention(16)
    fused, report = swap(nn.Sequential(block, block))
    assert len(report.entries) == 1
    assert fused[0] is fused[1]


def test_a_block_that_cannot_be_copied_is_refused(model):
    model[1].lock = (one for one in ())
    _, report = swap(model, inplace=True)
    assert report.refused[0].refusal.startswith("it cannot be copied to be verified: TypeError")


def test_the_meta_device_is_refused(model):
    _, report = swap(model.to("meta"))
    assert report.refused[0].refusal == "it cannot be verified on the meta device"


def test_a_compiled_block_is_refused(model):
    model[1].compile()
    _, report = swap(model, inplace=True)
    assert report.refused[0].refusal == "it is compiled; swap before"


def test_the_original_forward_is_at_hand(model, x):
    fused, _ = swap(model)
    y = model[0](x)
    torch.testing.assert_close(original_forward(fused[1], y), model[1](y), rtol=0, atol=0)


class Scaled(nn.Module):
    """Attention over tokens, with a temperature that stands in no convolution."""

    def __init__(self, channels, temperature=1.0):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.temperature = temperature

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2) / self.temperature).softmax(-1) @ v


def scaled(block, x):
    q, k, v = block.qkv(x).chunk(3, -1)
    return tdnet_ops_attention(q, k, v, scale=1 / block.temperature)


def tdnet_ops_attention(*args, **kwargs):
    from tdnet_ops import attention_propagate

    return attention_propagate(*args, **kwargs)


def convert_scaled(block):
    if block.temperature <= 0:
        raise Refused(f"its temperature is {block.temperature}")
    return scaled


def test_people_register_their_own_blocks():
    register(Scaled, convert_scaled)
    model = nn.Sequential(Scaled(8), Scaled(8, 3.0), Scaled(8, -1.0))
    fused, report = swap(model)
    assert [entry.refusal for entry in report.entries] == [None, None, "its temperature is -1.0"]
    x = torch.randn(2, 21, 8)
    torch.testing.assert_close(fused(x), model(x))


class Twice(nn.Module):
    """A known block that has another one as its part."""

    def __init__(self):
        super().__init__()
        self.inner = PositionAttention(8)

    def forward(self, x):
        return 2 * self.inner(x)


def twice(block, x):
    return 2 * position_attention(block.inner, x)


def test_parts_of_a_fused_block_are_not_looked_at():
    register(Twice, lambda block: twice)
    _, report = swap(nn.Sequential(Twice()))
    assert [entry.name for entry in report.entries] == ["0"]


def test_and_say_with_what_they_are_verified():
    seen = []

    def inputs(block, batch, size):
        seen.append((batch, size))
        return (torch.randn(batch, size[0], 8),)

    register(Scaled, convert_scaled, inputs=inputs)
    assert swap(Scaled(8))[1].fused
    assert {batch for batch, _ in seen} == {1, 2}
    assert all(height % 2 and width % 2 for _, (height, width) in seen)


@pytest.mark.parametrize(
    ("cls", "convert", "message"),
    [
        (3, convert_scaled, "cls: expected a subclass of torch.nn.Module, got 3"),
        (int, convert_scaled, "cls: expected a subclass of torch.nn.Module, got <class 'int'>"),
        (Scaled, None, "convert: expected a function, got None"),
    ],
)
def test_register_refuses_what_it_cannot_use(cls, convert, message):
    with pytest.raises(TypeError, match=message):
        register(cls, convert)


def test_convert_must_return_a_function():
    register(PositionAttention, lambda block: nn.Identity())
    with pytest.raises(TypeError, match=r"convert: expected it to return a function, got Identity"):
        swap(PositionAttention(8))
    register(PositionAttention, lambda block: position_attention)


def test_swap_refuses_what_is_no_model():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list"):
        swap([])


def test_explain_leaves_the_model_as_it_is(model, x):
    model.insert(1, nn.BatchNorm2d(16))
    before = copy.deepcopy(model.state_dict())
    report = explain(model, x)
    assert type(model[2]) is PositionAttention
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [entry.name for entry in report.fused] == ["2"]


def test_explain_tells_time_and_memory_at_the_inputs_that_reach_a_block(model):
    x = torch.randn(1, 3, 66, 66)
    (entry, refused) = explain(model, x).entries
    affinity = 4 * (64 * 64) ** 2
    assert entry.original.bytes >= affinity
    assert entry.fused.bytes < affinity / 10
    assert 0 < entry.fused.seconds < entry.original.seconds
    assert refused.original is None
    assert " ms, " in str(entry)
    (again, _) = explain(swap(model)[0], x).entries
    assert again.original.bytes == entry.original.bytes
    assert again.fused.bytes == entry.fused.bytes


def test_explain_without_inputs_measures_nothing(model):
    assert all(entry.original is None for entry in explain(model).entries)
