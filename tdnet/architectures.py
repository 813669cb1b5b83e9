"""All models by name. It imports nothing, so that `tdnet --help` can list them without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TDNetShape:
    """Depth of the sub-networks' ResNets, their number m, and the channels inside a head."""

    depth: int
    num_paths: int
    head_channels: int


TDNETS = {"td4-psp18": TDNetShape(18, 4, 128), "td2-psp50": TDNetShape(50, 2, 256)}
PSPNET_DEPTHS = {"pspnet-18": 18, "pspnet-50": 50, "pspnet-101": 101}


def model_names() -> list[str]:
    """The names that ``build_model`` knows."""
    return [*TDNETS, *PSPNET_DEPTHS]
