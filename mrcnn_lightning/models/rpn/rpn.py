"""The region proposal network (Faster R-CNN, section 3.1; on a pyramid as in FPN, section 4.1).

B images, L levels, A anchors of all levels, a anchors a cell, S sampled anchors.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrcnn_lightning.models.box_losses import GIoULoss, SmoothL1Loss
from mrcnn_lightning.models.rpn.anchors import Anchors, AnchorSampler
from mrcnn_lightning.models.rpn.proposals import Proposals, ProposalSelector, RPNOutput
from mrcnn_lightning.ops.losses import objectness_loss
from mrcnn_lightning.structures import Batch
from mrcnn_lightning.user_error import UserError


class RPN(nn.Module):
    """3x3 convolutions and two 1x1 convolutions shared by all levels.

    Args:
        in_channels: of every level.
        strides: of the levels.
        num_convs: 3x3 convolutions.
        hidden: their channels; None is as many as come in.
        logits_per_anchor: 1 of being an object, or 2, of background and of object.
        delta_weights: what deltas are multiplied by.
        anchors: where the boxes start from.
        sampler: which anchors to learn from.
        box_loss: of the deltas.
        selector: which boxes become proposals.

    Raises:
        UserError: the levels and the anchors' do not fit, or a number is out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: Sequence[int],
        num_convs: int,
        hidden: int | None,
        logits_per_anchor: Literal[1, 2],
        delta_weights: Sequence[float],
        anchors: Anchors,
        sampler: AnchorSampler,
        box_loss: SmoothL1Loss | GIoULoss,
        selector: ProposalSelector,
    ) -> None:
        super().__init__()
        if len(anchors.sizes) != len(strides):
            raise UserError(
                f"model.rpn.anchors.sizes has {len(anchors.sizes)} levels, but the neck gives "
                f"{len(strides)}: give one list of sizes for each"
            )
        if logits_per_anchor not in (1, 2) or num_convs < 0:
            raise UserError(
                f"model.rpn.logits_per_anchor={logits_per_anchor} num_convs={num_convs}: give 1 or "
                "2 logits, and no fewer than 0 convolutions"
            )
        self.strides = list(strides)
        self.logits_per_anchor = logits_per_anchor
        self.delta_weights = delta_weights
        self.anchors = anchors
        self.sampler = sampler
        self.box_loss = box_loss
        self.selector = selector
        hidden = hidden or in_channels
        widths = [in_channels] + [hidden] * num_convs
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[layer], hidden, 3, padding=1) for layer in range(num_convs)
        )
        self.objectness = nn.Conv2d(hidden, anchors.num_per_cell * logits_per_anchor, 1)
        self.deltas = nn.Conv2d(hidden, anchors.num_per_cell * 4, 1)
        for layer in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> RPNOutput:
        """What the network says of every anchor of a canvas of `image_size` (height, width)."""
        objectness, deltas = [], []
        for hidden in features:
            for conv in self.convs:
                hidden = F.relu(conv(hidden), inplace=True)
            # From (B, a * n, height, width) to the anchors' order: row, column, anchor.
            logits = self.objectness(hidden).permute(0, 2, 3, 1)
            if self.logits_per_anchor == 2:  # their softmax is the sigmoid of the difference
                logits = logits[..., 1::2] - logits[..., 0::2]
            objectness.append(logits.flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(hidden.shape[0], -1, 4))
        level_sizes = [level.shape[1] for level in objectness]
        joined = torch.cat(objectness, dim=1), torch.cat(deltas, dim=1)
        anchors = self.anchors(features, self.strides, image_size)
        return RPNOutput(anchors, *joined, self.delta_weights, level_sizes, image_size)

    def loss(self, output: RPNOutput, batch: Batch) -> dict[str, Tensor]:
        """`loss_objectness` and `loss_rpn_box_reg`."""
        assert batch.targets is not None
        sampled, matched_gt = self.sampler(
            output.anchors, batch.targets, batch.windows, batch.seeds
        )
        chosen = sampled.indices[..., None].expand(-1, -1, 4)
        objectness = output.objectness.gather(1, sampled.indices)
        return {
            "loss_objectness": objectness_loss(objectness, sampled.positive, sampled.valid),
            "loss_rpn_box_reg": self.box_loss(
                output.deltas.gather(1, chosen),
                output.anchors[sampled.indices],
                batch.targets.boxes.gather(1, matched_gt[..., None].expand(-1, -1, 4)),
                weights=self.delta_weights,
                positive=sampled.positive,
                valid=sampled.valid,
            ),
        }

    @torch.no_grad()
    def propose(self, output: RPNOutput, batch: Batch, *, training: bool) -> Proposals:
        """The proposals, best first."""
        return self.selector(output, batch.windows, training=training)
