"""Whole models of the packages, swapped."""

import pytest
import torch
from blocks import load

from tdnet_ops.swap import swap


def segformer():
    transformers = load("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], decoder_hidden_size=16
    )
    return transformers.SegformerForSemanticSegmentation(config), torch.randn(1, 3, 67, 70), 4


def pvt():
    transformers = load("transformers")
    config = transformers.PvtConfig(
        image_size=64, hidden_sizes=[8, 16, 20, 16], depths=[1, 1, 1, 1]
    )
    return transformers.PvtForImageClassification(config), torch.randn(1, 3, 64, 64), 4


def vae():
    module = load("diffusers.models.autoencoders.autoencoder_kl")
    model = module.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    return model, torch.randn(1, 3, 10, 12), 2


def psa():
    block = load("ultralytics.nn.modules.block")
    return block.C2PSA(128, 128, 2), torch.randn(1, 128, 9, 7), 2


@pytest.mark.parametrize("make", [segformer, pvt, vae, psa], ids=lambda make: make.__name__)
def test_it_computes_the_same(make):
    model, x, blocks = make()
    model.eval()
    fused, report = swap(model)
    assert len(report.fused) == blocks, report
    with torch.no_grad():
        expected, came = (tuple_of(one(x)) for one in (model, fused))
    for before, after in zip(expected, came, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def tuple_of(output):
    tensors = torch.utils._pytree.tree_leaves(output)
    return tuple(x for x in tensors if isinstance(x, torch.Tensor))


def test_attention_weights_that_a_model_is_asked_for():
    model, x, _ = pvt()
    model = model.eval()
    model.set_attn_implementation("eager")
    fused, report = swap(model)
    assert report.fused
    with torch.no_grad():
        expected, came = (one(x, output_attentions=True).attentions for one in (model, fused))
    assert len(came) == 4
    for before, after in zip(expected, came, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
