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


class SelfAttention(nn.Module):
    """SAGAN (Zhang et al. 2019), Eq. 1 to 3: every projection under a spectral norm."""

    def __init__(self, channels):
        super().__init__()
        self.f = nn.utils.spectral_norm(nn.Conv2d(channels, channels // 4, 1, bias=False))
        self.g = nn.utils.spectral_norm(nn.Conv2d(channels, channels // 4, 1, bias=False))
        self.h = nn.utils.spectral_norm(nn.Conv2d(channels, channels // 2, 1, bias=False))
        self.v = nn.utils.spectral_norm(nn.Conv2d(channels // 2, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        keys, queries, values = self.f(x).flatten(2), self.g(x).flatten(2), self.h(x).flatten(2)
        s = torch.einsum("bci,bcj->bij", keys, queries)
        beta = s.softmax(1)  # Over i: position j attends to all i.
        out = torch.einsum("bij,bci->bcj", beta, values).unflatten(2, x.shape[2:])
        return self.gamma * self.v(out) + x


def sagan(block, x):
    k, q, v = block.f(x), block.g(x), block.h(x)
    return block.gamma * block.v(attention_propagate(q, k, v, scale=1.0)) + x


class BigGanAttention(nn.Module):
    """BigGAN (Brock et al. 2019): keys and values pooled by 2."""

    def __init__(self, channels):
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        theta = self.theta(x).flatten(2)
        phi, g = (F.max_pool2d(part(x), 2).flatten(2) for part in (self.phi, self.g))
        beta = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
        out = torch.bmm(g, beta.transpose(1, 2)).unflatten(2, x.shape[2:])
        return self.gamma * self.o(out) + x


def biggan(block, x):
    q, k, v = block.theta(x), F.max_pool2d(block.phi(x), 2), F.max_pool2d(block.g(x), 2)
    return attention_propagate(q, k, v, x, block.gamma * block.o.weight.flatten(1), scale=1.0)


def projection(channels, out):
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class ObjectAttention(nn.Module):
    """OCR (Yuan et al. 2020): pixels attend to the representations of object regions."""

    def __init__(self, channels, key_channels):
        super().__init__()
        self.f_pixel = projection(channels, key_channels)
        self.f_object = projection(channels, key_channels)
        self.f_down = projection(channels, key_channels)
        self.f_up = projection(key_channels, channels)

    def forward(self, x, regions):
        q = self.f_pixel(x).flatten(2).transpose(1, 2)
        k, v = self.f_object(regions).flatten(2), self.f_down(regions).flatten(2).transpose(1, 2)
        similarity = F.softmax(torch.matmul(q, k) * k.shape[1] ** -0.5, dim=-1)
        context = torch.matmul(similarity, v).transpose(1, 2)
        return self.f_up(context.reshape(len(x), -1, *x.shape[2:]))


def object_attention(block, x, regions):
    q, k, v = block.f_pixel(x), block.f_object(regions), block.f_down(regions)
    return block.f_up(attention_propagate(q, k, v))


def pixels_and_regions(block, batch, size):
    channels = block.f_pixel[0].in_channels
    return torch.randn(batch, channels, *size), torch.randn(batch, channels, 5, 1)


class AsymmetricNonLocal(nn.Module):
    """ANN (Zhu et al. 2019): keys and values of a pooling pyramid; one projection, with one norm,
    makes queries and keys."""

    def __init__(self, channels, key_channels):
        super().__init__()
        self.f_key = projection(channels, key_channels)
        self.f_query = self.f_key
        self.f_value = nn.Conv2d(channels, key_channels, 1)
        self.w = nn.Conv2d(key_channels, channels, 1)
        nn.init.zeros_(self.w.weight)
        nn.init.zeros_(self.w.bias)

    def forward(self, x):
        v = pyramid(self.f_value(x)).flatten(2).transpose(1, 2)
        q = self.f_query(x).flatten(2).transpose(1, 2)
        k = pyramid(self.f_key(x)).flatten(2)
        similarity = F.softmax(q @ k * k.shape[1] ** -0.5, -1)
        return self.w((similarity @ v).transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


def asymmetric(block, x):
    v = pyramid(block.f_value(x))
    q, k = block.f_query(x), pyramid(block.f_key(x))
    return attention_propagate(q, k, v, None, block.w.weight.flatten(1), block.w.bias)


def pyramid(x):
    """[B, C, 1, 1 + 9 + 36 + 64]."""
    levels = [F.adaptive_avg_pool2d(x, size).flatten(2) for size in (1, 3, 6, 8)]
    return torch.cat(levels, 2).unsqueeze(2)


class SpaceTimeMemoryRead(nn.Module):
    """STM (Oh et al. 2019), Eq. 1 and 2: a query frame reads the keys of T memory frames."""

    def forward(self, keys, values, query, query_value):
        p = torch.einsum("bcm,bcn->bmn", keys.flatten(2), query.flatten(2))
        p = F.softmax(p / query.shape[1] ** 0.5, dim=1)
        memory = torch.bmm(values.flatten(2), p).unflatten(2, query.shape[2:])
        return torch.cat([memory, query_value], 1)


def stm(block, keys, values, query, query_value):
    return torch.cat([attention_propagate(query, keys, values), query_value], 1)


def memory_and_query(block, batch, size):
    keys, values = torch.randn(batch, 8, 3, *size), torch.randn(batch, 12, 3, *size)
    return keys, values, torch.randn(batch, 8, *size), torch.randn(batch, 12, *size)


class SpaceTimeMemoryReadWithWeights(SpaceTimeMemoryRead):
    """As published: the weights are returned too."""

    def forward(self, keys, values, query, query_value):
        p = torch.einsum("bcm,bcn->bmn", keys.flatten(2), query.flatten(2))
        p = F.softmax(p / query.shape[1] ** 0.5, dim=1)
        memory = torch.bmm(values.flatten(2), p).unflatten(2, query.shape[2:])
        return torch.cat([memory, query_value], 1), p


class CorrespondenceRead(nn.Module):
    """STCN (Cheng et al. 2021), Eq. 2 and 3: by negative squared distance, all keys or the
    `top_k` nearest."""

    def __init__(self, top_k=None):
        super().__init__()
        self.top_k = top_k

    def forward(self, keys, values, query):
        k, q = keys.flatten(2), query.flatten(2)
        affinity = 2 * k.transpose(1, 2) @ q - k.square().sum(1).unsqueeze(2)
        affinity = affinity / k.shape[1] ** 0.5
        if self.top_k is None:
            weights = affinity.softmax(1)
        else:
            best, indices = affinity.topk(min(self.top_k, affinity.shape[1]), dim=1)
            weights = torch.zeros_like(affinity).scatter(1, indices, best.softmax(1))
        return (values.flatten(2) @ weights).unflatten(2, query.shape[2:])


def stcn(block, keys, values, query):
    # One channel more: 2 k q - |k|^2 = (k, |k|^2) (2 q, -1).
    k = torch.cat([keys, keys.square().sum(1, keepdim=True)], 1)
    q = torch.cat([2 * query, -torch.ones_like(query[:, :1])], 1)
    return attention_propagate(q, k, values, scale=keys.shape[1] ** -0.5)


def frames_and_query(block, batch, size):
    return memory_and_query(block, batch, size)[:3]


class AnisotropicRead(nn.Module):
    """XMem (Cheng and Schwing 2022), Eq. 2: shrinkage s of each key, selection e of each query."""

    def forward(self, keys, shrinkage, values, query, selection):
        k, s, q, e = (x.flatten(2) for x in (keys, shrinkage, query, selection))
        squares = k.square().transpose(1, 2) @ e
        products = 2 * k.transpose(1, 2) @ (q * e)
        constant = (e * q.square()).sum(1, keepdim=True)
        similarity = (products - squares - constant) * s.transpose(1, 2) / k.shape[1] ** 0.5
        return (values.flatten(2) @ similarity.softmax(1)).unflatten(2, query.shape[2:])


def xmem(block, keys, shrinkage, values, query, selection):
    k = torch.cat([keys, keys.square(), torch.ones_like(shrinkage)], 1) * shrinkage
    qe = query * selection
    q = torch.cat([2 * qe, -selection, -(qe * query).sum(1, keepdim=True)], 1)
    return attention_propagate(q, k, values, scale=keys.shape[1] ** -0.5)


def frames_and_selection(block, batch, size):
    keys, values, query = frames_and_query(block, batch, size)
    shrinkage = torch.rand(batch, 1, 3, *size) + 1
    return keys, shrinkage, values, query, torch.rand_like(query)


def register_all():
    register(PositionAttention, lambda block: position_attention)
    register(SelfAttention, lambda block: sagan)
    register(BigGanAttention, lambda block: biggan)
    register(ObjectAttention, lambda block: object_attention, inputs=pixels_and_regions)
    register(AsymmetricNonLocal, lambda block: asymmetric)
    register(SpaceTimeMemoryRead, lambda block: stm, inputs=memory_and_query)
    register(SpaceTimeMemoryReadWithWeights, lambda block: stm, inputs=memory_and_query)
    register(CorrespondenceRead, lambda block: stcn, inputs=frames_and_query)
    register(AnisotropicRead, lambda block: xmem, inputs=frames_and_selection)
