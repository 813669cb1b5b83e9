"""What the weights of ESPNetv2 are called in the files of its authors (sacmehta/EdgeNets)."""

import re

_LEVELS = {
    "stem": "level1",
    "down4": "level2_0",
    "down8": "level3_0",
    "units8": "level3",
    "down16": "level4_0",
    "units16": "level4",
}
# Of the encoder: our names and what stands in their place.
_ENCODER_PARTS = {
    "reduce": "proj_1x1",
    "joined": "br_after_cat",
    "expand": "conv_1x1_exp",
    "remind": "inp_reinf",
    "norm": "bn",
}
# Of the decoder, the parts of a stage. @ is its number, from 1; # that of the encoder's map.
_DECODER_PARTS = {
    "pooling.reduce": "bu_dec_l@.projection_layer.cbr",
    "pooling.scaled": "bu_dec_l@.stages",
    "pooling.joined": "bu_dec_l@.merge_layer.0.br",
    "pooling.merge": "bu_dec_l@.merge_layer.2.cbr",
    "pooling.project": "bu_dec_l@.merge_layer.3",
    "pooled": "bu_dec_l@.br.br",
    "shortcut.weigh": "merge_enc_dec_l#.wt_layer.1",
    "shortcut.reduce": "merge_enc_dec_l#.expansion_layer.cbr",
    "merged": "bu_br_l#",
}


def espnetv2_name(own: str) -> str:
    """The authors' name of a weight, given its name in our model.

    Raises:
        ValueError: if it is no weight of a single-frame ESPNetv2.
    """
    if match := re.fullmatch(r"features\.backbone\.(\w+)\.(.+)", own):
        return f"base_net.{_LEVELS[match[1]]}.{_encoder_rest(match[1], match[2])}"
    if match := re.fullmatch(r"features\.decoder\.(\d)\.(.+)", own):
        return _decoder_name(int(match[1]) + 1, match[2])
    if match := re.fullmatch(r"head\.(.+)", own):
        return _decoder_name(4, f"pooling.{match[1]}")
    raise ValueError(f"own: expected a weight of a single-frame ESPNetv2, got {own!r}")


def _encoder_rest(level: str, own: str) -> str:
    own = re.sub(r"branches\.(\d)", r"spp_dw.\1.conv", own)
    if level.startswith("units"):
        own = re.sub(r"^(\d)\.unit\.", r"\1.", own)
        own = re.sub(r"^(\d)\.act\.", r"\1.module_act.", own)
    else:
        own = re.sub(r"^unit\.", "eesp.", own)
    return ".".join(_ENCODER_PARTS.get(part, part) for part in own.split("."))


def _decoder_name(stage: int, own: str) -> str:
    part = next(part for part in _DECODER_PARTS if own.startswith(f"{part}."))
    theirs = _DECODER_PARTS[part].replace("@", str(stage)).replace("#", str(stage + 1))
    rest = own.removeprefix(f"{part}.")
    # Their blocks are sequences.
    parts = ("conv", "norm", "act") if theirs.endswith("cbr") else ("norm", "act")
    first, _, kind = rest.partition(".")
    return f"{theirs}.{parts.index(first)}.{kind}" if first in parts else f"{theirs}.{rest}"
