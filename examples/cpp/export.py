"""Writes what main.cpp runs: a model as an AOTInductor package, and an image.

    python examples/cpp/export.py labels.pt2 street.ppm

The model is small and its weights are random. The package takes images of any size from 32 x 32 on.
"""

import argparse

import torch
import torch._inductor
from PIL import Image
from torch import Tensor, nn

import tdnet_ops
from tdnet.data.synthetic import street_clip

parser = argparse.ArgumentParser()
parser.add_argument("package", help="name of the package that is written, such as labels.pt2")
parser.add_argument("image", help="name of the image that is written, such as street.ppm")
arguments = parser.parse_args()


class Labels(nn.Module):
    """Labels of an image uint8 [H, W, 3]: uint8 [H, W], 9 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, 16, 4, stride=4, bias=False)
        self.query, self.key = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.classify = nn.Conv2d(16, 9, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.encode(image.permute(2, 0, 1)[None] / 127.5 - 1)
        k, v = (tdnet_ops.spatial_pool(y, 4) for y in (self.key(x), x))
        x = tdnet_ops.attention_propagate(self.query(x), k, v, residual=x, heads=2)
        return tdnet_ops.upsample_argmax(self.classify(x), image.shape[:2])[0]


torch.manual_seed(0)
model = Labels().eval()
(frame,) = street_clip(num_frames=1, size=(64, 128))
Image.fromarray(frame.image).save(arguments.image)
image = torch.from_numpy(frame.image)

# Multiples of 4, as the model's stride.
sizes = {0: 4 * torch.export.Dim("rows", min=8), 1: 4 * torch.export.Dim("columns", min=8)}
with torch.no_grad():
    program = torch.export.export(model, (image,), dynamic_shapes=(sizes,))
    torch._inductor.aoti_compile_and_package(program, package_path=arguments.package)
    labels = model(image)
for row in labels[::4, ::2].tolist():
    print("".join(map(str, row)))
