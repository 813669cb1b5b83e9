"""Parameters and floating-point operations of every model, beside the paper's numbers.

python -m tdnet.models.table > table.md
"""

import argparse
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from tdnet.architectures import MODELS, ModelConfig, Size
from tdnet.models.registry import build
from tdnet.models.stream import StreamingModel

# mIoU (%) and milliseconds a frame of Tables 1 and 2 (Cityscapes val) and Table 3 (CamVid), where
# the paper has them; on a Titan Xp.
CITYSCAPES = {
    "td4-psp18": (76.8, 85),
    "td2-psp50": (79.9, 178),
    "pspnet-18": (75.5, 91),
    "pspnet-50": (78.1, 238),
    "pspnet-101": (79.7, 360),
    "td4-bise18": (75.0, 21),
    "td2-bise34": (76.4, 26),
    "bisenet-18": (73.8, 20),
    "bisenet-34": (76.0, 27),
    "bisenet-101": (76.5, 72),
}
CAMVID = {
    "td4-psp18": (72.6, 40),
    "td2-psp50": (76.0, 90),
    "pspnet-18": (71.0, 40),
    "pspnet-50": (74.7, 100),
    "pspnet-101": (76.2, 175),
}


@dataclass(frozen=True)
class Cost:
    """Of a model.

    Attributes:
        parameters: of all paths together.
        frame: floating-point operations from a frame to its coarse logits, once the window is
            full; a product and its sum are two.
        ahead: those after the logits, for the next frame.
    """

    parameters: int
    frame: int
    ahead: int


@torch.inference_mode()
def cost(config: ModelConfig, size: Size) -> Cost:
    """Counts for images of (height, width). Nothing is computed or allocated."""
    with torch.device("meta"):
        model: StreamingModel = build(config).eval()
        image = torch.empty(1, 3, *size)
        stream = model.start()
        for _ in range(config.num_paths - 1):
            _, stream = model.label(image, stream)
        stream = model.prepare(stream)
        with FlopCounterMode(display=False) as frame:
            _, stream = model.label(image, stream)
        with FlopCounterMode(display=False) as ahead:
            model.prepare(stream)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, frame.get_total_flops(), ahead.get_total_flops())


def markdown(size: Size) -> str:
    """The table of all models."""
    lines = [
        "| model | parameters, M | GFLOP a frame | GFLOP ahead of the next | "
        "Cityscapes, paper: mIoU, ms | CamVid, paper: mIoU, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, config in MODELS.items():
        counted = cost(config, size)
        cells = (
            f"`{name}`",
            f"{counted.parameters / 1e6:.1f}",
            f"{counted.frame / 1e9:.0f}",
            f"{counted.ahead / 1e9:.1f}",
            _paper(CITYSCAPES, name),
            _paper(CAMVID, name),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _paper(table: dict[str, tuple[float, int]], name: str) -> str:
    return f"{table[name][0]}, {table[name][1]}" if name in table else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    height, width = parser.parse_args().size
    print(markdown((height, width)))


if __name__ == "__main__":
    main()
