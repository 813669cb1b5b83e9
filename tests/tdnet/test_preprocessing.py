import numpy as np
import torch
from PIL import Image

from tdnet.preprocessing import images_of


def test_each_number_by_hand():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    images = images_of(torch.from_numpy(pixels))
    assert images.shape == (2, 3, 3, 5)
    assert images.dtype == torch.float32
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (pixels[..., channel] / 255 - mean) / deviation
        np.testing.assert_allclose(images[:, channel], expected, rtol=1e-5, atol=1e-6)


def test_enlarged_as_by_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    larger = np.stack([Image.fromarray(pixels).resize((21, 17), Image.Resampling.BILINEAR)])
    images = images_of(torch.from_numpy(pixels)[None], (17, 21))
    # Pillow rounds to whole numbers, once for each direction.
    torch.testing.assert_close(images, images_of(torch.from_numpy(larger)), rtol=0, atol=0.02)


def test_gradients_reach_the_pixels_after_a_frame_was_segmented():
    with torch.inference_mode():
        images_of(torch.zeros(1, 2, 2, 3))
    pixels = torch.zeros(1, 2, 2, 3, requires_grad=True)
    images_of(pixels).sum().backward()
    assert pixels.grad.isfinite().all()
