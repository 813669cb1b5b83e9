"""Teachers of the grouped distillation (Sec. 4, Fig. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.models.features import PyramidFeatures
from tdnet.models.heads import SegmentationHead
from tdnet.models.single_frame import SingleFrameModel
from tdnet.training.losses import Opinions


class Teacher(nn.Module):
    """A trained model of single frames, frozen, that says what it sees as a whole and by groups.

    The convolution of its head that reduces the features is a sum over their channels. PSPNet's is
    split evenly into m groups f_1 to f_m of input channels: group i has slice i of the backbone's
    channels and slice i of each pooled branch. pi(sum f) is the model itself, and pi(f_i) what its
    segmentation layers make of one group alone.

    Args:
        model: any that makes logits ``[B, K, h, w]`` of images; only PSPNet's reduction is split.
        groups: m, the number of paths of the student.
        published: as the published training has it: m f_i stands for the sum of all groups, and of
            four groups the two in the middle change places.

    Raises:
        ValueError: the channels cannot be split into so many groups.
    """

    def __init__(self, model: nn.Module, groups: int, *, published: bool = False) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.groups = groups
        self.published = published
        self.parts = _parts(model)
        if groups < 1 or any(size % groups for size in self.parts):
            raise ValueError(f"groups: expected a divisor of {self.parts} channels, got {groups}")

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor, group: int) -> Opinions:
        """Logits of the whole and of one group (0 to m-1; None where it cannot be split).

        Args:
            image: normalised, ``[B, 3, H, W]``.

        Raises:
            ValueError: there is no such group.
        """
        if not 0 <= group < self.groups:
            raise ValueError(f"group: expected 0 to {self.groups - 1}, got {group}")
        model = self.model
        if not isinstance(model, SingleFrameModel):
            return Opinions(model(image))
        features = model.features(image)
        of_group = self._of_group(model, features, group) if self.parts else None
        return Opinions(model.head(features), of_group)

    def _of_group(self, model: SingleFrameModel, features: Tensor, group: int) -> Tensor:
        if self.published and self.groups == 4:
            group = (0, 2, 1, 3)[group]
        # Slice i of every part, of the map and of the weights alike.
        numbers = torch.arange(sum(self.parts), device=features.device).split(self.parts)
        channels = torch.cat([part.chunk(self.groups)[group] for part in numbers])
        head = model.head
        assert isinstance(head, SegmentationHead)
        hidden = head.hidden
        of_group = F.conv2d(features[:, channels], hidden.conv.weight[:, channels], padding=1)
        if self.published:
            of_group = of_group * self.groups
        return head.classifier(F.relu(hidden.norm(of_group)))


def _parts(model: nn.Module) -> list[int]:
    """Channels of the backbone and of each pooled branch; none where the reduction is not split."""
    if not isinstance(model, SingleFrameModel) or not isinstance(model.features, PyramidFeatures):
        return []
    return model.features.pyramid.part_channels
