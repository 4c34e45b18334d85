"""What is drawn; the switches are those of the ablation."""

from __future__ import annotations

from pydantic import Field

from steadysam.methods.contract import FrozenConfig


class SceneConfig(FrozenConfig):
    """Scenes, appearance and corruption.

    Args:
        depth: slices of a slab; 1 draws single images only.
        slabs: share of steps with slabs; the others draw single images, which differ more.
        objects: shapes per slab.
        regions: parts of the background.
        textures: grain, grating and gradients that differ from label to label; without them labels are flat.
        lookalikes: share of shapes that repeat an earlier one elsewhere.
        faint: share of shapes that hardly differ from what they lie on.
        corruption: bias field, blur, noise, gamma, inversion, fields of view, curves on top.
        colour: share of slabs in colour.
    """

    depth: int = Field(default=2, ge=1)
    slabs: float = Field(default=0.3, ge=0, le=1)
    objects: int = Field(default=10, ge=1)
    regions: int = Field(default=6, ge=1)
    textures: bool = True
    lookalikes: float = Field(default=0.3, ge=0, le=1)
    faint: float = Field(default=0.3, ge=0, le=1)
    corruption: bool = True
    colour: float = Field(default=0.35, ge=0, le=1)


class PromptMix(FrozenConfig):
    """Which prompts are drawn.

    Args:
        boxes: share of rows that get a box instead of points.
        interior: share of point sets that keep away from the border.
        wrong: share of rows in which one click lies beside the target.
        neighbour: share of rows whose clicks come from the object's mask on another slice of the slab.
        by_area: share of first rows, those that begin with one click, whose target is drawn in proportion to its area.
    """

    boxes: float = Field(default=0.25, ge=0, le=1)
    interior: float = Field(default=0.7, ge=0, le=1)
    wrong: float = Field(default=0.1, ge=0, le=1)
    neighbour: float = Field(default=0.1, ge=0, le=1)
    by_area: float = Field(default=0.5, ge=0, le=1)
