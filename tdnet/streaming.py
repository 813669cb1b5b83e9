"""Segmenting a video frame by frame with constant work and bounded state."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tdnet.architectures import Size
from tdnet.models.layers import resize
from tdnet.models.stream import StreamingModel
from tdnet.preprocessing import images_of
from tdnet_ops import upsample_argmax


@dataclass(frozen=True)
class _State:
    """Everything a segmenter remembers. It is never changed, only replaced as a whole."""

    stream: Any  # what the model remembers
    frame_size: Size | None = None
    image_size: Size | None = None


class VideoSegmenter:
    """Segments a video, one frame in, one label map out.

    The model is put in eval mode and is otherwise only read: several segmenters may share it, each
    with the state of its own video. After a reset the first frame takes path 0 of a TDNet, the
    next one path 1, and so on cyclically; the first m-1 frames are labelled from their own
    features alone. A single-frame model treats every frame alike.

    What the next frame needs from past frames is computed by ``prepare``, after the labels are
    out. On a CUDA device ``step`` launches it behind the labels by itself. On a CPU call it once
    the labels are delivered and there is time before the next frame; otherwise the next frame
    does it first. The numbers are the same.

    Args:
        model: from ``build_model`` or ``load_checkpoint``, or another StreamingModel, with at
            most 256 classes.
        size: (height, width) that frames are resized to before they enter the network, as in
            ``(769, 1537)``. None: they enter as they come.

    Raises:
        TypeError: if the model cannot stream.
        ValueError: if it has more than 256 classes, or a size is not two positive integers.
    """

    def __init__(self, model: StreamingModel, size: Size | None = None) -> None:
        if not isinstance(model, StreamingModel):
            raise TypeError(
                "model: expected one with the methods start, label and prepare, as from "
                f"build_model, got {type(model).__name__}"
            )
        classes = model.config.num_classes
        if classes > 256:
            raise ValueError(f"model: expected at most 256 classes (uint8 labels), got {classes}")
        if size is not None and (
            len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size)
        ):
            raise ValueError(f"size: expected (height, width), both positive integers, got {size}")
        self.model = model.eval()
        self.size = size
        self.reset()

    def reset(self, path: int = 0) -> None:
        """Forget the past: the next frame starts a new video and may have another size.

        Args:
            path: the path that the next frame takes, 0 to m-1.

        Raises:
            ValueError: a TDNet has no such path.
        """
        self._state = _State(self.model.start(path))

    @torch.inference_mode()
    def step(self, frame: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.uint8]:
        """Label the next frame.

        The frame is resized and normalised as in ``tdnet.preprocessing``. Labels come from the
        model's coarse logits, resized to the size of the frame (bilinear, align_corners=True) in
        one go, whatever the size of the network's input.

        Args:
            frame: RGB, uint8, ``[H, W, 3]``, a NumPy array or a tensor on any device.

        Returns:
            uint8 class indices, ``[H, W]``.

        Raises:
            TypeError: if the frame is no array or tensor, or not of uint8.
            ValueError: if its shape is not ``[H, W, 3]`` with pixels, or its size differs from
                that of the frames before. The state is then as it was before the call.
            RuntimeError: if the model was put back in training mode.
        """
        pixels = _checked_frame(frame)
        height, width = pixels.shape[:2]
        _check_same_size("frame", (height, width), self._state.frame_size)
        parameter = self._parameter()
        with _on(parameter.device):
            pixels = _upload(pixels, parameter.device)
            image = images_of(pixels[None], self.size).to(parameter.dtype)
            logits, state = self._advance(image)
            labels = upsample_argmax(logits, (height, width), align_corners=True)[0]
            state = replace(state, frame_size=(height, width))
            if labels.device.type == "cpu":
                self._state = state
                return labels.numpy()
            # The copy is enqueued before the preparation: the labels do not wait for it.
            host, copied = _copy_to_host(labels)
            state = self._prepared(state)
            copied.synchronize()
            self._state = state
        return host.numpy()

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of the next frame, given as a normalised image.

        It advances the video as ``step`` does. The image enters the network at its own size.

        Args:
            x: float ``[1, 3, H, W]``, normalised with ImageNet's mean and standard deviation.

        Returns:
            ``[1, K, H, W]`` logits, resized from stride 8 (bilinear, align_corners=True).

        Raises:
            TypeError, ValueError, RuntimeError: as ``step`` does.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a float tensor [1, 3, H, W], got {came}")
        if x.dim() != 4 or x.shape[:2] != (1, 3) or x.numel() == 0:
            raise ValueError(f"x: expected [1, 3, H, W], got {list(x.shape)}")
        height, width = x.shape[-2:]
        with _on(self._parameter().device):
            logits, state = self._advance(x.to(self._parameter()))
            result = resize(logits, (height, width))
        self._state = state
        return result

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do now what the next frame needs from past ones: pool the last, run the inner hops.

        Changes no result; without effect when there is nothing to do.
        """
        with _on(self._parameter().device):
            self._state = self._prepared(self._state)

    def _prepared(self, state: _State) -> _State:
        return replace(state, stream=self.model.prepare(state.stream))

    def _advance(self, image: Tensor) -> tuple[Tensor, _State]:
        """Coarse logits of the next frame, and the state after it. Stores nothing."""
        if self.model.training:
            raise RuntimeError("model: expected eval mode, got training mode: call model.eval()")
        height, width = image.shape[-2:]
        _check_same_size("image", (height, width), self._state.image_size)
        image = image.contiguous(memory_format=torch.channels_last)
        logits, stream = self.model.label(image, self._state.stream)
        return logits, replace(self._state, stream=stream, image_size=(height, width))

    def _parameter(self) -> Tensor:
        return next(self.model.parameters())


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, whose streams and launches are then meant."""
    if device.type == "cpu":
        return nullcontext()
    return torch.accelerator.device_index(device.index)


def _upload(pixels: Tensor, device: torch.device) -> Tensor:
    """The frame on the model's device, without waiting for the copy to a GPU.

    The pinned memory is new for each frame. Torch's allocator keeps it from being used again until
    the copy is done, and then hands it out again, so that a stream pins but a few frames.
    """
    if device.type == "cpu" or pixels.device.type != "cpu":
        return pixels.to(device)
    pinned = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    return pinned.copy_(pixels).to(device, non_blocking=True)


def _copy_to_host(labels: Tensor) -> tuple[Tensor, torch.Event]:
    """Pinned memory for the labels, and the event after which they are there.

    Both belong to the labels' device, whichever is the current one.
    """
    host = torch.empty(labels.shape, dtype=labels.dtype, pin_memory=True)
    host.copy_(labels, non_blocking=True)
    copied = torch.Event(labels.device)
    copied.record(torch.accelerator.current_stream(labels.device))
    return host, copied


def _checked_frame(frame: object) -> Tensor:
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8:
            raise TypeError(f"frame: expected dtype uint8, got {frame.dtype}")
        # Torch takes neither negative strides nor read-only memory.
        is_taken = frame.flags.writeable and frame.flags.c_contiguous
        frame = torch.from_numpy(frame if is_taken else np.array(frame, order="C"))
    if not isinstance(frame, Tensor):
        raise TypeError(f"frame: expected a NumPy array or a tensor, got {type(frame).__name__}")
    if frame.dtype != torch.uint8:
        raise TypeError(f"frame: expected dtype torch.uint8, got {frame.dtype}")
    if frame.dim() != 3 or frame.shape[2] != 3 or frame.numel() == 0:
        raise ValueError(f"frame: expected [H, W, 3] (RGB), got {list(frame.shape)}")
    return frame


def _check_same_size(what: str, came: Size, expected: Size | None) -> None:
    if expected is not None and came != expected:
        raise ValueError(
            f"{what}: expected {expected[0]}x{expected[1]} (height x width) as those before it, "
            f"got {came[0]}x{came[1]}: call reset() to start a video of another size"
        )
