"""MedSAM2: SAM 2.1 tiny tuned on medical volumes, a box on one slice carried through all (Ma et al., arXiv 2504.03600).

The same as `sam2` with the defaults of MedSAM2's own use: the box of the key slice's points, propagated both ways; the
largest connected part is kept. Its weights, row `medsam2`, were made for images of 512 px.
"""

from __future__ import annotations

from steadysam.methods.video.lanes import Lane
from steadysam.methods.video.recipe import TRAITS, VideoConfig, blank, build, segment, stages

__all__ = ["TRAITS", "Config", "blank", "build", "segment", "stages"]


class Config(VideoConfig):
    """The settings of `VideoConfig` with MedSAM2's defaults."""

    lane: Lane = "box"
    keep_largest: bool = True
