"""SAM 2: slices as frames of a video, an object carried through them by memory (Ravi et al., arXiv 2408.00714).

Three lanes: noisy points on every slice (`all`), on one key slice (`key`), or the box of that slice's points (`box`).
The network is `transformers`' and stands in place of a backbone; the score by which it says that the object is absent
empties a slice. Tuning runs over clips with gradients through the memory. Zero-shot:
`steadysam predict -m sam2.1-hiera-tiny --method sam2`.
"""

from __future__ import annotations

from steadysam.methods.video.recipe import TRAITS, VideoConfig, blank, build, segment, stages

__all__ = ["TRAITS", "Config", "blank", "build", "segment", "stages"]


class Config(VideoConfig):
    """The settings of `VideoConfig` with its defaults: points on every slice."""
