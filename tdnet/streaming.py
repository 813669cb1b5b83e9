"""Segmenting a video frame by frame with constant work and bounded state."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet.models.encoding import StoredFrame
from tdnet.models.layers import Size, resize
from tdnet.models.pspnet import PSPNet
from tdnet.models.tdnet import EncodedFrame, Memory, TDNet
from tdnet_ops import upsample_argmax

# ImageNet statistics of RGB values in 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _State:
    """Everything a segmenter remembers. It is never changed, only replaced as a whole."""

    path: int = 0  # of the next frame
    window: tuple[StoredFrame, ...] = ()  # past frames, oldest first, at most m-1
    latest: EncodedFrame | None = None  # the last frame, until ``prepare`` moves it to the window
    memory: Memory | None = None  # for the next frame
    frame_size: Size | None = None
    image_size: Size | None = None


class VideoSegmenter:
    """Segments a video, one frame in, one label map out.

    The model is put in eval mode and is otherwise only read: several segmenters may share it, each
    with the state of its own video. After a reset the first frame takes path 1 of a TDNet, the
    next one path 2, and so on cyclically; the first m-1 frames are labelled from their own
    features alone. A PSPNet treats every frame alike.

    What the next frame needs from past frames is computed by ``prepare``, after the labels are
    out. On a CUDA device ``step`` launches it behind the labels by itself. On a CPU call it once
    the labels are delivered and there is time before the next frame; otherwise the next frame
    does it first. The numbers are the same.

    Args:
        model: a TDNet or PSPNet from ``build_model`` or ``load_checkpoint``, with at most 256
            classes.
        size: (height, width) that frames are resized to before they enter the network, as in
            ``(769, 1537)``. None: they enter as they come.

    Raises:
        TypeError: if the model is of another class.
        ValueError: if it has more than 256 classes, or a size is not two positive integers.
    """

    def __init__(self, model: TDNet | PSPNet, size: Size | None = None) -> None:
        if not isinstance(model, (TDNet, PSPNet)):
            raise TypeError(f"model: expected a TDNet or a PSPNet, got {type(model).__name__}")
        classes = model.config.num_classes
        if classes > 256:
            raise ValueError(f"model: expected at most 256 classes (uint8 labels), got {classes}")
        if size is not None and (
            len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size)
        ):
            raise ValueError(f"size: expected (height, width), both positive integers, got {size}")
        self.model = model.eval()
        self.size = size
        self._state = _State()
        self._statistics: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def reset(self) -> None:
        """Forget the past: the next frame starts a new video and may have another size."""
        self._state = _State()

    @torch.inference_mode()
    def step(self, frame: npt.NDArray[np.uint8] | Tensor) -> npt.NDArray[np.uint8]:
        """Label the next frame.

        The frame is resized (bilinear, half-pixel centres, no antialiasing), divided by 255 and
        normalised with ImageNet's mean and standard deviation. Labels come from the logits at
        stride 8, resized to the size of the frame (bilinear, align_corners=True) in one go,
        whatever the size of the network's input.

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
        with _on(self._parameter().device):
            logits, state = self._advance(self._normalise(pixels))
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
        model = self.model
        if isinstance(model, PSPNet) or state.latest is None:
            return state
        capacity = model.num_paths - 1
        stored = model.store(state.latest, (state.path - 1) % model.num_paths)
        window = (*state.window, stored)[-capacity:]
        memory = model.propagate(window, state.path) if len(window) == capacity else None
        return replace(state, window=window, latest=None, memory=memory)

    def _advance(self, image: Tensor) -> tuple[Tensor, _State]:
        """Logits at stride 8 of the next frame, and the state after it. Stores nothing."""
        model = self.model
        if model.training:
            raise RuntimeError("model: expected eval mode, got training mode: call model.eval()")
        height, width = image.shape[-2:]
        _check_same_size("image", (height, width), self._state.image_size)
        image = image.contiguous(memory_format=torch.channels_last)
        if isinstance(model, PSPNet):
            state = replace(self._state, image_size=(height, width))
            return model.coarse_logits(image), state
        state = self._prepared(self._state)
        frame = model.encode(image, state.path)
        logits = model.decode(frame, state.memory, state.path)
        return logits, replace(
            state,
            path=(state.path + 1) % model.num_paths,
            latest=frame,
            memory=None,
            image_size=(height, width),
        )

    def _normalise(self, pixels: Tensor) -> Tensor:
        """uint8 ``[H, W, 3]`` to a normalised image ``[1, 3, h, w]`` on the model's device."""
        parameter = self._parameter()
        image = _upload(pixels, parameter.device).permute(2, 0, 1)[None].float()
        if self.size is not None and image.shape[-2:] != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", align_corners=False)
        mean, deviation = self._mean_and_deviation(image.device)
        return ((image / 255 - mean) / deviation).to(parameter.dtype)

    def _mean_and_deviation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both ``[3, 1, 1]``; made once for a device, since that waits for it."""
        if device not in self._statistics:
            mean, deviation = (
                torch.tensor(values, device=device).view(3, 1, 1)
                for values in (MEAN, STANDARD_DEVIATION)
            )
            self._statistics[device] = (mean, deviation)
        return self._statistics[device]

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
