"""Calls that a fused forward does not cover run the original one."""

import pytest
import torch
from blocks import MAKERS, randomise
from torch.utils._pytree import tree_map

from tdnet_ops.swap import swap


def fused_and_original(name):
    block, inputs = MAKERS[name]()
    fused, report = swap(randomise(block.eval()))
    assert report.fused
    return fused, block, inputs(2)


def assert_same(came, expected):
    tree_map(lambda x, y: torch.testing.assert_close(x, y, rtol=0, atol=0), came, expected)


def test_attention_weights_of_pvt():
    fused, original, inputs = fused_and_original("PVT")
    came = fused(*inputs, output_attentions=True)
    assert len(came) == 2
    assert_same(came, original(*inputs, output_attentions=True))


def test_masks_of_segformer():
    fused, original, inputs = fused_and_original("SegFormer")
    mask = torch.rand(2, 1, 21 * 23, 5 * 5) > 0.5
    assert_same(fused(*inputs, mask)[0], original(*inputs, mask)[0])
    bias = torch.randn(1, 2, 21 * 23, 25)
    assert_same(fused(*inputs, position_bias=bias)[0], original(*inputs, position_bias=bias)[0])


def test_attention_weights_of_segformer_asked_for_later():
    fused, original, inputs = fused_and_original("SegFormer")
    fused.config._attn_implementation = original.config._attn_implementation = "eager"
    assert fused(*inputs)[1].shape == (2, 2, 21 * 23, 25)
    assert_same(fused(*inputs), original(*inputs))


@pytest.mark.parametrize("argument", ["encoder_hidden_states", "attention_mask"])
def test_other_keys_and_masks_of_diffusers(argument):
    fused, original, (x,) = fused_and_original("diffusers tokens")
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "attention_mask": torch.randn(8, 35, 35),
    }[argument]
    assert_same(fused(x, **{argument: given}), original(x, **{argument: given}))


def test_another_processor_of_diffusers():
    fused, _, (x,) = fused_and_original("diffusers VAE")

    class Doubled:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            return 2 * hidden_states

    fused.set_processor(Doubled())
    torch.testing.assert_close(fused(x), 2 * x)


def test_the_time_embedding_of_diffusers_is_for_a_norm_that_is_not_there():
    fused, original, (x,) = fused_and_original("diffusers VAE")
    torch.testing.assert_close(fused(x, temb=torch.randn(2, 4)), original(x), rtol=1e-4, atol=1e-5)


def test_the_export_format_of_ultralytics():
    fused, original, (x,) = fused_and_original("ultralytics PSA")
    fused.format = original.format = "coreml"
    assert_same(fused(x), original(x))
