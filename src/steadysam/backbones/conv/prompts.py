"""The prompt encoder: points and boxes as tokens and, at the same time, as spots on the embedding's grid.

SAM's tokens alone leave it to attention to find the place of a click, which takes a network that starts from random
numbers very long; a spot on the grid is seen by the next convolution (as in RITM, Sofiiuk et al., ICIP 2022, and
ScribblePrompt, Wong et al., ECCV 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.conv.positions import FourierPositions

POSITIVE_SPOT, NEGATIVE_SPOT, BOX, PRIOR = 0, 1, 4, 5  # of the maps: narrow spots, the filled box, the earlier mask
_SPOTS = (1.0, 4.0)  # standard deviations of a point's spots, in cells of the embedding
_NEGATIVE, _POSITIVE, _FIRST_CORNER, _SECOND_CORNER, _NOTHING = range(5)


class ConvPromptEncoder(nn.Module):
    """Points, boxes and a mask -> sparse (G, T, E) tokens and a dense (G, C, h, h) map.

    Args:
        channels: C of the embedding.
        token_channels: E of the tokens.
        positions: the Fourier features, shared with the mask decoder and owned elsewhere.
    """

    positions: FourierPositions

    def __init__(self, channels: int, token_channels: int, positions: FourierPositions) -> None:
        super().__init__()
        self.__dict__["positions"] = positions  # used, not owned: its table belongs to the whole model
        self.kinds = nn.Embedding(5, token_channels)
        maps = 2 * len(_SPOTS) + 1 + 2
        self.dense1 = nn.Conv2d(maps, channels // 2, 3, padding=1)
        self.dense2 = nn.Conv2d(channels // 2, channels, 3, padding=1)
        self.direct = nn.Conv2d(maps, channels, 1, bias=False)
        with torch.no_grad():  # the maps themselves, one channel each: `PromptPooling` starts from them
            self.direct.weight.copy_(torch.eye(channels, maps)[..., None, None])

    def forward(
        self, xy: Tensor, positive: Tensor, boxes: Tensor | None, masks: Tensor | None, image_size: int, grid: int
    ) -> tuple[Tensor, Tensor]:
        """Prompts of G rows with equally many points each.

        Args:
            xy: (G, N, 2) model pixels, centres at integers; N may be 0.
            positive: (G, N) bool.
            boxes: (G, 4) x0, y0, x1, y1 in model pixels, or None.
            masks: (G, 1, m, m) logits of an earlier answer, or None.
            image_size, grid: S and h.

        Returns:
            sparse (G, T, E): points, then the box's two corners, or one not-a-point token where there is no box, as
            SAM does; dense (G, C, h, h).
        """
        unit = (xy + 0.5) / image_size
        tokens = [self.positions(unit) + self.kinds(positive.long())]
        if boxes is None:
            tokens.append(self.kinds.weight[_NOTHING].expand(len(xy), 1, -1))
        else:
            corners = self.positions((boxes.view(-1, 2, 2) + 0.5) / image_size)
            tokens.append(corners + self.kinds.weight[_FIRST_CORNER : _SECOND_CORNER + 1])
        filled = _filled(boxes, len(xy), image_size, grid, xy.device)
        maps = torch.cat([_spots(unit, positive, grid), filled, _prior(masks, xy, grid)], 1)
        dense = self.direct(maps) + self.dense2(F.relu(self.dense1(maps)))
        return torch.cat(tokens, 1), dense


def _spots(unit: Tensor, positive: Tensor, grid: int) -> Tensor:
    """(G, N, 2) points in [0, 1] -> (G, 4, h, h): Gaussians of both widths around positive, then negative points."""
    centres = torch.arange(grid, device=unit.device, dtype=unit.dtype) + 0.5
    offset = (unit * grid)[..., None] - centres  # (G, N, 2, h)
    if not offset.shape[1]:
        return unit.new_zeros(len(unit), 2 * len(_SPOTS), grid, grid)
    layers = []
    for deviation in _SPOTS:
        bell = torch.exp(-0.5 * (offset / deviation) ** 2)
        each = bell[:, :, 1, :, None] * bell[:, :, 0, None, :]  # (G, N, h, h)
        layers += [(each * sign[..., None, None]).amax(1) for sign in (positive, ~positive)]
    return torch.stack(layers, 1)


def _filled(boxes: Tensor | None, rows: int, image_size: int, grid: int, device: torch.device) -> Tensor:
    """(G, 4) boxes -> (G, 1, h, h): 1 inside, with the share of a cell that the box covers at its border."""
    if boxes is None:
        return torch.zeros(rows, 1, grid, grid, device=device)
    edges = (boxes + 0.5) * grid / image_size
    cells = torch.arange(grid, device=device, dtype=boxes.dtype)

    def cover(low: Tensor, high: Tensor) -> Tensor:
        return (torch.minimum(high[:, None], cells + 1) - torch.maximum(low[:, None], cells)).clamp(0, 1)

    return (cover(edges[:, 1], edges[:, 3])[:, :, None] * cover(edges[:, 0], edges[:, 2])[:, None])[:, None]


def _prior(masks: Tensor | None, xy: Tensor, grid: int) -> Tensor:
    """(G, 1, m, m) logits -> (G, 2, h, h): squashed logits, and 1 to say that there is a mask."""
    if masks is None:
        return torch.zeros(len(xy), 2, grid, grid, device=xy.device)
    small = F.interpolate(masks.float(), (grid, grid), mode="bilinear", align_corners=False, antialias=True)
    return torch.cat([torch.tanh(small / 4), torch.ones_like(small)], 1)
