"""A video, frame by frame: constant work and constant memory, however long it is.

    python examples/stream.py street.png --size 256 512 --frames 8

A TDNet labels a synthetic street and the last frame is drawn: as it came, with the labels of the
model, with the exact ones. No trained weights ship, so that the model's colours mean nothing; with
a checkpoint, `tdnet.load_checkpoint(path)` takes the place of `tdnet.build_model`.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image

import tdnet
from tdnet.data.palette import overlay
from tdnet.data.synthetic import street_clip

parser = argparse.ArgumentParser()
parser.add_argument("picture", help="name of the picture that is written, such as street.png")
parser.add_argument("--size", type=int, nargs=2, default=(256, 512), help="height and width")
parser.add_argument("--frames", type=int, default=8, help="length of the clip")
arguments = parser.parse_args()

torch.manual_seed(0)
model = tdnet.build_model("td4-psp18", num_classes=19).eval()
segmenter = tdnet.VideoSegmenter(model)

for index, frame in enumerate(street_clip(arguments.frames, arguments.size)):
    begin = time.perf_counter()
    labels = segmenter.step(frame.image)  # uint8 [H, W, 3] to uint8 [H, W]
    print(f"frame {index}: labels after {1e3 * (time.perf_counter() - begin):.0f} ms")
    segmenter.prepare()  # what the next frame needs from this one, while nobody waits

segmenter.reset()  # another video may follow, of another size

pictures = [frame.image, overlay(frame.image, labels), overlay(frame.image, frame.labels)]
Image.fromarray(np.concatenate(pictures)).save(arguments.picture)
print(f"frame, labels of random weights and exact labels: {arguments.picture}")
