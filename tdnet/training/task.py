"""A model with its loss in one module: what learns a window, and what data parallelism wraps."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor, nn

from tdnet.models.layers import ConvNormReLU
from tdnet.models.resnet import ResNet
from tdnet.models.single_frame import SingleFrameModel
from tdnet.models.tdnet import TDNet
from tdnet.training.losses import (
    PAPER,
    Distillation,
    Entropy,
    Opinions,
    cross_entropy,
    distillation_loss,
    hard_cross_entropy,
)
from tdnet.training.teacher import Teacher
from tdnet.training.temporal import estimated_flow, temporal_loss

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Task(nn.Module):
    """The loss of a model on labelled windows (Sec. 4).

    Args:
        model: learns; of single frames, or a TDNet of m paths.
        teacher: None for cross entropy alone.
        form: the weights of Eq. 6.
        hard_pixels: see `hard_cross_entropy`.
        auxiliary: weight of the cross entropy of a head on the third stage of the last frame's
            ResNet; 0 for none.
        temporal: weight of the consistency with the frame before (`temporal_loss`); windows are
            then a frame longer.

    Raises:
        ValueError: an auxiliary head for a model without a ResNet.
    """

    def __init__(
        self,
        model: TDNet | SingleFrameModel,
        teacher: Teacher | None = None,
        form: Distillation = PAPER,
        *,
        hard_pixels: bool = False,
        auxiliary: float = 0.0,
        temporal: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.form = form
        self.hard_pixels = hard_pixels
        self.auxiliary_weight = auxiliary
        self.auxiliary = AuxiliaryHeads(model) if auxiliary else None
        self.temporal_weight = temporal
        self._frozen: set[str] = set()

    @property
    def window_length(self) -> int:
        """Images of a window."""
        return self.num_paths + bool(self.temporal_weight)

    @property
    def num_paths(self) -> int:
        return self.model.config.num_paths

    def freeze(self, patterns: list[str], norms: bool = False) -> None:
        """Keeps what some patterns of names match (fnmatch) as it is, norms in eval mode.

        Args:
            patterns: of the names of modules and parameters of the model.
            norms: every BatchNorm too.

        Raises:
            ValueError: a pattern that matches nothing.
        """
        modules = dict(self.model.named_modules())
        parameters = dict(self.model.named_parameters())
        for pattern in patterns:
            names = [name for name in (*modules, *parameters) if fnmatchcase(name, pattern)]
            if not names:
                raise ValueError(
                    f"frozen: expected a pattern of names of the model, got {pattern!r}"
                )
            for name in names:
                part = modules[name] if name in modules else parameters[name]
                part.requires_grad_(False)
            self._frozen.update(name for name in names if name in modules)
        if norms:
            found = [name for name, module in modules.items() if isinstance(module, _NORMS)]
            for name in found:
                modules[name].requires_grad_(False)
            self._frozen.update(found)
        self.train(self.training)

    def train(self, mode: bool = True) -> Task:
        super().train(mode)
        # By name: SyncBatchNorm takes the places of norms.
        for name in self._frozen:
            for part in self.model.get_submodule(name).modules():
                if isinstance(part, _NORMS):
                    part.eval()
        return self

    def forward(
        self, images: Tensor, labels: Tensor, path: int = 0, pixels: float | None = None
    ) -> Tensor:
        """The loss of the last frames of some windows.

        Args:
            images: normalised, ``[B, window_length, 3, H, W]``, oldest first.
            labels: of the last frames, ``[B, H, W]``.
            path: of the last frame.
            pixels: see `cross_entropy`.
        """
        before, images = images[:, :-1], images[:, -self.num_paths :]
        entropy: Entropy = partial(cross_entropy, pixels=pixels)
        if self.hard_pixels:
            entropy = hard_cross_entropy
        student = self._opinions(images, path, self._needs_group)
        taught = None if self.teacher is None else self.teacher(images[:, -1], path)
        loss = distillation_loss(student, taught, labels, self.form, entropy)
        if self.auxiliary is not None:
            loss = loss + self.auxiliary_weight * entropy(self.auxiliary(path), labels)
        if self.temporal_weight:
            loss = loss + self.temporal_weight * self._change(before, images, student.whole, path)
        if self.auxiliary is not None:
            self.auxiliary.forget()
        return loss

    def _change(self, before: Tensor, images: Tensor, logits: Tensor, path: int) -> Tensor:
        """Between the window that ends a frame earlier and this one, of these logits."""
        flow, weights = estimated_flow(before[:, -1], images[:, -1])
        previous = self._opinions(before, (path - 1) % self.num_paths, False).whole
        return temporal_loss(previous, logits, flow, weights)

    @property
    def _needs_group(self) -> bool:
        """Whether the loss asks for logits of V_t alone; else the head's norms never see them."""
        taught = self.teacher is not None and self.teacher.parts and self.form.group
        return bool(taught or self.form.own)

    def _opinions(self, images: Tensor, path: int, with_group: bool) -> Opinions:
        if isinstance(self.model, SingleFrameModel):
            return Opinions(self.model.coarse_logits(images[:, -1]))
        if with_group:
            return Opinions(*self.model.opinions(images, path))
        return Opinions(self.model.coarse_logits(images, path))


class AuxiliaryHeads(nn.Module):
    """A head for each path on the third stage of its ResNet, of the last frame that it saw.

    The model itself does not know of them: they are thrown away after the training.

    Raises:
        ValueError: the model has no ResNet.
    """

    def __init__(self, model: TDNet | SingleFrameModel) -> None:
        super().__init__()
        backbones = [module for module in model.modules() if isinstance(module, ResNet)]
        if not backbones:
            raise ValueError(
                f"loss.auxiliary: expected a model with ResNets, got {model.config.name}"
            )
        self._seen: list[Tensor | None] = [None] * len(backbones)
        heads = []
        for index, backbone in enumerate(backbones):
            channels = backbone.channels[2]
            backbone.layer3.register_forward_hook(partial(self._keep, index))
            heads.append(
                nn.Sequential(
                    ConvNormReLU(channels, channels // 4, 3),
                    nn.Dropout2d(0.1),
                    nn.Conv2d(channels // 4, model.config.num_classes, 1),
                )
            )
        self.heads = nn.ModuleList(heads)

    def _keep(self, index: int, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if module.training:
            self._seen[index] = out

    def forward(self, path: int) -> Tensor:
        """Logits of the last frame that a path has seen, ``[B, K, h, w]``."""
        index = path % len(self.heads)  # of a shared sub-network there is one
        features = self._seen[index]
        assert features is not None
        return self.heads[index](features)

    def forget(self) -> None:
        """Keeps no features longer than a step."""
        self._seen = [None] * len(self._seen)
