"""Samples of attention_propagate."""

from __future__ import annotations

from torch import Tensor

from samples.logits import Logits, growing, low, spike, step, unseen
from samples.sample import Arguments, Build, Numbers, OperatorSamples, Shape, Size


def build(
    batch: int,
    key_channels: int,
    value_channels: int,
    out_channels: int | None,
    size: Size,
    key_size: Size,
    extras: str = "",
    scale: float | None = None,
    logits: Logits | None = None,
    heads: int = 1,
) -> Build:
    """`extras`: "r" with a residual, "b" with a bias, "h" with huge values, whose sum overflows.

    `logits` are added to those of the first head, of rank one. Channels are those of all heads.
    """
    factor = (key_channels / heads) ** -0.5 if scale is None else scale

    def edit_queries(x: Tensor) -> None:
        if logits is not None:
            x[:, 0] = _rank_one(logits, size, key_size)[0].view(*size)

    def edit_keys(x: Tensor) -> None:
        if logits is not None:
            x[:, 0] = _rank_one(logits, size, key_size)[1].view(*key_size) / factor

    def build(numbers: Numbers) -> Arguments:
        last = value_channels if out_channels is None else out_channels
        return (
            numbers.feature_map(batch, key_channels, *size, edit=edit_queries),
            numbers.feature_map(batch, key_channels, *key_size, edit=edit_keys),
            numbers.feature_map(
                batch, value_channels, *key_size, edit=numbers.make_huge if "h" in extras else None
            ),
            numbers.feature_map(batch, last, *size) if "r" in extras else None,
            None
            if out_channels is None
            else numbers.other(out_channels, value_channels, scale=value_channels**-0.5),
            numbers.other(last) if "b" in extras else None,
            scale,
            heads,
        )

    return build


def _rank_one(logits: Logits, size: Size, key_size: Size) -> tuple[Tensor, Tensor]:
    """x and y with x_i y_j = logits_ij: x is 1 for queries of the largest row, else 0."""
    whole = logits(size[0] * size[1], key_size[0] * key_size[1])
    row = whole[whole.abs().sum(1).argmax()]
    return (whole == row).all(1).float(), row


SHAPES: dict[str, Shape] = {
    "middle": (2, 6, 7, 5, (5, 6), (3, 4), "rb"),
    "ones": (1, 1, 1, None, (1, 1), (1, 1)),
    "one_key": (2, 64, 129, None, (3, 5), (1, 1), "r"),
    "one_query": (1, 7, 3, 2, (1, 1), (5, 7), "b"),
    "no_batch": (0, 8, 5, 6, (4, 3), (2, 2), "rb"),
    "columns": (1, 2, 3, 4, (47, 1), (1, 49), "rb"),
    "odd_channels": (2, 33, 151, 151, (9, 7), (5, 3), "rb"),
    "wide": (1, 64, 129, 65, (7, 19), (9, 15), "rb"),
    "more_out_channels": (1, 16, 8, 200, (17, 13), (10, 6), "rb"),
    "fewer_out_channels": (1, 5, 65, 3, (17, 13), (4, 6)),
    "deep": (3, 5, 4, None, (2, 3), (129, 3), "", 0.3),
    "many_tiles": (1, 8, 9, None, (25, 20), (3, 3), "b"),
    "many_keys": (1, 4, 5, None, (10, 10), (53, 53)),
    "heads": (2, 6, 9, None, (5, 6), (3, 4), "rb", None, None, 3),
    "heads_phi": (2, 20, 8, 7, (3, 7), (5, 4), "rb", 0.3, None, 4),
    # More values than the CPU packs at once.
    "heads_in_groups": (2, 8, 320, None, (5, 7), (16, 16), "r", None, None, 2),
}

TILES: dict[str, Shape] = {
    # 64 key channels, the tensor cores' own kernel in half precision: slices of 128 or 256.
    "three_tiles": (1, 64, 392, None, (11, 13), (9, 21), "r", None, growing(9.0)),
    "full_tiles": (1, 64, 256, None, (8, 17), (16, 16), "rb", None, growing(30.0)),
    "one_key_more": (2, 64, 264, None, (7, 5), (1, 193), "rb", -0.3, growing(60.0)),
    # The last key of the last tile is missing.
    "one_key_less": (1, 64, 24, None, (3, 5), (1, 127), "r"),
    "falling": (1, 64, 512, 512, (5, 50), (5, 52), "rb", None, growing(-40.0)),
    "most_keys": (1, 64, 200, None, (3, 5), (19, 31), "r", None, growing(70.0)),
    "narrow": (3, 64, 120, None, (13, 23), (10, 32), "rb", None, growing(20.0)),
    "spike": (1, 64, 40, None, (12, 11), (4, 65), "", None, spike(70, 150, 14.0)),
    "spike_below": (1, 64, 40, None, (12, 11), (4, 65), "", None, spike(90, 150, 14.0)),
    "spike_late": (1, 64, 160, None, (12, 11), (4, 65), "", None, spike(9, 258, 200.0)),
    "scale_zero": (1, 64, 72, None, (3, 45), (3, 67), "rb", 0.0),
    "negative": (1, 64, 136, 144, (3, 45), (3, 67), "rb", -0.125, spike(33, 100, 20.0)),
    "huge": (1, 64, 136, None, (3, 45), (3, 67), "hb"),
    "huge_negative": (1, 64, 24, None, (3, 45), (3, 67), "h", -0.125),
    "huge_narrow": (1, 64, 24, None, (3, 45), (10, 32), "hb", None, growing(20.0)),
    # Weights grow by less than what moves the maximum, for the sum of all but one tile.
    "huge_later": (1, 64, 24, None, (2, 8), (5, 64), "h", 0.01, step(64, 5.9)),
    "parts_of_two_maps": (2, 64, 24, None, (3, 5), (3, 67), "r", None, growing(9.0)),
    "low": (1, 64, 24, None, (3, 45), (3, 67), "", None, low),
    "unseen": (1, 64, 24, None, (4, 33), (5, 52), "", None, unseen(slice(0, 130))),
    # All other kernels.
    "general_low": (1, 24, 40, None, (3, 45), (3, 67), "", None, low),
    "general_unseen": (1, 5, 24, None, (4, 33), (5, 52), "", None, unseen(slice(0, 130))),
    "general_huge": (1, 24, 136, None, (3, 45), (10, 32), "hb", None, growing(2.0)),
    "tiles": (2, 24, 136, None, (9, 19), (10, 32), "rb", None, growing(20.0)),
    "deep_keys": (1, 150, 24, None, (5, 16), (3, 67), "r", -0.1, growing(15.0)),
    "general_scale_zero": (1, 5, 130, None, (5, 13), (5, 26), "b", 0.0),
    # phi stays after the attention, with a residual and bias of its own.
    "phi_after": (2, 64, 16, 264, (8, 24), (8, 16), "rb"),
    # 64 key channels a head, then others.
    "heads_64": (2, 128, 80, None, (13, 23), (10, 32), "rb", None, growing(20.0), 2),
    "heads_slices": (1, 192, 480, None, (5, 7), (9, 21), "rb", None, growing(9.0), 3),
    # Other kernels: several chunks of 80 key channels.
    "heads_tiles": (1, 160, 272, None, (9, 8), (10, 32), "rb", None, growing(20.0), 2),
    "heads_mixed": (2, 128, 48, 72, (8, 24), (8, 16), "rb", None, None, 2),
}

VECTORS: dict[str, Shape] = {
    "vectors": (2, 64, 24, None, (4, 8), (2, 8), "rb"),
    "vectors_folded": (2, 64, 24, 16, (4, 8), (2, 8), "r"),
    # Where batches, or rows too, have no stride that tells of a gap.
    "vectors_alone": (1, 64, 24, None, (4, 8), (2, 8), "rb"),
    "vectors_of_a_row": (1, 64, 24, None, (1, 16), (1, 16), "rb"),
    "vectors_general": (2, 24, 16, None, (4, 8), (2, 8), "rb"),
    "vectors_phi_after": (2, 8, 8, 24, (4, 8), (4, 8), "rb"),
    "vectors_heads": (2, 128, 48, None, (4, 8), (2, 8), "rb", None, None, 2),
    # Channels are whole vectors, those of a head are not.
    "vectors_uneven_heads": (2, 24, 24, None, (4, 8), (2, 8), "rb", None, None, 2),
}


def longest_sum(arguments: Arguments) -> int:
    """Over the channels of the values for phi, or over the keys."""
    values = arguments[1]
    return max(values.shape[1], values.shape[2:].numel())


SAMPLES = OperatorSamples(
    build=build,
    shapes=SHAPES,
    tiles=TILES,
    vectors=VECTORS,
    resized=lambda size, key_size: (2, 6, 7, 5, size, key_size, "rb"),
    several_blocks="wide",
    longest_sum=longest_sum,
    gpu_roundings=2,
)
