"""The main operator on two feature maps: forward, backward, and which code computes it.

    python examples/operators.py

Each position of a large map of queries attends to a small map of keys and carries back its values;
then come a 1x1 convolution and the residual, all in one pass that stores no attention matrix.
"""

import torch

import tdnet_ops

# Maps are [batch, channels, height, width]. In channels_last nothing has to be copied.
maps = {"memory_format": torch.channels_last}
q = torch.randn(1, 64, 48, 96).to(**maps).requires_grad_()  # 4,608 queries
k = torch.randn(1, 64, 12, 24).to(**maps).requires_grad_()  # 288 keys of the same 64 channels
v = torch.randn(1, 128, 12, 24).to(**maps).requires_grad_()  # their values
residual = torch.randn(1, 128, 48, 96).to(**maps)
weight, bias = torch.randn(128, 128) / 128**0.5, torch.zeros(128)

out = tdnet_ops.attention_propagate(q, k, v, residual, weight, bias)
print(f"result: {list(out.shape)}, channels_last: {out.is_contiguous(**maps)}")

# The same in plain PyTorch: 4,608 x 288 attention weights are stored.
tokens_q, tokens_k, tokens_v = (x.flatten(2).transpose(1, 2) for x in (q, k, v))
attention = (tokens_q @ tokens_k.transpose(1, 2) / 64**0.5).softmax(-1)
plain = (attention @ tokens_v) @ weight.T + bias
plain = plain.transpose(1, 2).reshape(residual.shape) + residual
print(f"largest difference from plain PyTorch: {(out - plain).abs().max():.1e}")

# Gradients reach every tensor; the attention weights are computed again, not kept.
gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
expected = torch.autograd.grad(plain.square().sum(), (q, k, v))
for name, got, definition in zip("qkv", gradients, expected, strict=True):
    difference = (got - definition).abs().max() / definition.abs().max()
    print(f"largest relative difference of the gradient of {name}: {difference:.1e}")

# The best backend for the device runs. One can be forced, here the definition in plain PyTorch.
with tdnet_ops.backend("reference"):
    forced = tdnet_ops.attention_propagate(q, k, v, residual, weight, bias)
print(f"largest difference from the backend reference: {(out - forced).abs().max():.1e}")

# What was built, what runs here, and why the rest does not.
for backend, state in tdnet_ops.build_info()["backends"].items():
    print(f"{backend}: {state}")
