"""A swapped block in training, and under what torch wraps around models."""

import copy

import pytest
import torch
from blocks import MAKERS, paper_blocks, randomise
from torch import nn

from tdnet_ops.swap import restore, swap

paper_blocks.register_all()
# Of one map; the others have inputs of their own.
NAMES = [
    "timm NonLocalAttn",
    "mmcv norm",
    "diffusers VAE",
    "ultralytics PSA",
    "DANet position",
    "BigGAN",
    "asymmetric non-local",
]
of_blocks = pytest.mark.parametrize("name", NAMES)


def trained_pair(name):
    """A small network with the block, and its fused twin with parameters of its own."""
    block, inputs = MAKERS[name]()
    channels = inputs(1)[0].shape[1]
    original = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), block, nn.Conv2d(channels, 4, 1))
    fused, report = swap(copy.deepcopy(original), inplace=True)
    assert len(report.fused) == 1
    return original, fused


def losses(model, precision, steps=20):
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, labels = torch.randn(2, 3, 9, 11), torch.randint(4, (2, 9, 11))
    told = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = nn.functional.cross_entropy(model(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(float(loss))
    return torch.tensor(told)


@of_blocks
def test_twenty_steps_follow_the_loss_of_the_original(name):
    original, fused = trained_pair(name)
    expected, came = losses(original, "float32"), losses(fused, "float32")
    assert expected[-1] < expected[0] - 0.01
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=0)


@of_blocks
def test_under_amp_they_do_within_its_error(name):
    original, fused = trained_pair(name)
    exact = losses(copy.deepcopy(original), "float32")
    expected, came = losses(original, "bfloat16"), losses(fused, "bfloat16")
    error = float((expected - exact).abs().max())
    assert float((came - exact).abs().max()) <= 2 * error + 1e-3


@of_blocks
def test_compiled_it_is_one_graph_and_compiled_once(name):
    original, _ = trained_pair(name)
    # Two blocks alike, so that a class of each would compile twice.
    fused, _ = swap(randomise(nn.Sequential(original[1], copy.deepcopy(original[1]))).eval())
    channels = original[0].out_channels
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            x = torch.randn(2, channels, 9, 11)
            torch.testing.assert_close(compiled(x), fused(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["timm NonLocalAttn", "DANet position"])
def test_compiled_it_learns_the_same(name):
    _, fused = trained_pair(name)
    compiled = copy.deepcopy(fused)
    compiled.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        losses(compiled, "float32"), losses(fused, "float32"), rtol=1e-4, atol=0
    )


def test_blocks_alike_share_their_compiled_code():
    blocks = [swap(paper_blocks.PositionAttention(16))[0] for _ in range(4)]
    assert len({type(block) for block in blocks}) == 1


@of_blocks
def test_export(name):
    _, fused = trained_pair(name)
    fused = randomise(fused.eval())
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(fused, (torch.randn(2, 3, 16, 18),), dynamic_shapes=(sizes,))
    assert any("attention_propagate" in str(node.target) for node in exported.graph.nodes)
    x = torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(exported.module()(x), fused(x))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        original, fused = trained_pair("timm NonLocalAttn")
        wrapped = nn.parallel.DistributedDataParallel(fused)
        came = losses(wrapped, "float32", 4)
        torch.testing.assert_close(came, losses(original, "float32", 4), rtol=1e-4, atol=0)

        inside, report = swap(nn.parallel.DistributedDataParallel(original), inplace=True)
        assert [entry.name for entry in report.fused] == ["module.1"]
        losses(inside, "float32", 2)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            first, *rest = self.model
            return torch.utils.checkpoint.checkpoint(
                nn.Sequential(*rest), first(x), use_reentrant=reentrant
            )

    original, fused = trained_pair("DANet position")
    torch.testing.assert_close(
        losses(Checkpointed(fused), "float32"), losses(original, "float32"), rtol=1e-4, atol=0
    )


def test_swapped_and_restored_in_the_middle_of_training():
    original, fused = trained_pair("mmcv norm")
    expected = losses(original, "float32", 6)
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(2)
    x, labels = torch.randn(2, 3, 9, 11), torch.randint(4, (2, 9, 11))
    came = []
    for step in range(6):
        if step == 2:
            restore(fused)
        if step == 4:
            swap(fused, inplace=True, strict=True)
        loss = nn.functional.cross_entropy(fused(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        came.append(float(loss))
    torch.testing.assert_close(torch.tensor(came), expected, rtol=1e-4, atol=0)
