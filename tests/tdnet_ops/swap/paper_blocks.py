"""Attention blocks written from the equations of their papers, and how each is fused."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tdnet_ops import attention_propagate
from tdnet_ops.swap import register


class PositionAttention(nn.Module):
    """DANet (Fu et al. 2019), position attention."""

    def __init__(self, channels):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 4, 1)
        self.key = nn.Conv2d(channels, channels // 4, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x):
        q, k, v = (part(x).flatten(2) for part in (self.query, self.key, self.value))
        attention = self.softmax(torch.bmm(q.transpose(1, 2), k))
        out = torch.bmm(v, attention.transpose(1, 2)).view_as(x)
        return self.gamma * out + x


def position_attention(block, x):
    q, k, v = block.query(x), block.key(x), block.value(x)
    return attention_propagate(q, k, v * block.gamma, x, scale=1.0)


class ChannelAttention(nn.Module):
    """DANet, channel attention: between channels, not pixels."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.scale = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        tokens = x.flatten(2)
        energy = torch.bmm(tokens, tokens.transpose(1, 2))
        energy = energy.amax(-1, keepdim=True) - energy
        out = torch.bmm(F.softmax(energy, dim=-1), tokens).view_as(x)
        return self.gamma * out + x


def register_all():
    register(PositionAttention, lambda block: position_attention)
