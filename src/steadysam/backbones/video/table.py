"""The table of video models. Reading it imports neither torch nor transformers.

They are no backbones: what they remember from slice to slice does not go through `encode`, `embed` and `decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steadysam.backbones.table import BackboneSpec


@dataclass(frozen=True)
class VideoArchitecture:
    """The numbers in which the SAM 2 models differ; all else is `transformers.Sam2VideoConfig`'s own.

    Args:
        widths, heads, blocks, windows: of the four stages of the image encoder (Hiera).
        global_blocks: the blocks with global attention, counted through all stages.
        background: side of the table of positions that is stretched over the image.
        channels: width of embeddings, prompt encoder, mask decoder and memory; a multiple of 64 above 64.
        decoder_mlp, decoder_heads: the mask decoder's transformer.
        memory_layers, memory_mlp: the memory attention.
        fuser_layers, fuser_mlp: the memory encoder.
        mask_channels: hidden channels of the mask prompt's convolutions.
        patch: the image's side is a multiple of it.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    blocks: tuple[int, ...] = (1, 2, 7, 2)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: int = 7
    channels: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    memory_layers: int = 4
    memory_mlp: int = 2048
    fuser_layers: int = 2
    fuser_mlp: int = 1024
    mask_channels: int = 16
    patch: int = 32


_TINY = VideoArchitecture()
_SMALL = VideoArchitecture(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13))
_BASE_PLUS = VideoArchitecture(
    widths=(112, 224, 448, 896),
    heads=(2, 4, 8, 16),
    blocks=(2, 3, 16, 3),
    global_blocks=(12, 16, 20),
    background=14,
)
_LARGE = VideoArchitecture(
    widths=(144, 288, 576, 1152),
    heads=(2, 4, 8, 16),
    blocks=(2, 6, 36, 4),
    windows=(8, 4, 16, 8),
    global_blocks=(23, 33, 43),
)
_TEST = VideoArchitecture(
    widths=(8, 16, 32, 64),
    blocks=(1, 1, 2, 1),
    windows=(4, 2, 2, 2),
    global_blocks=(3,),
    background=2,
    channels=128,
    decoder_mlp=32,
    decoder_heads=2,
    memory_layers=1,
    memory_mlp=64,
    fuser_layers=1,
    fuser_mlp=64,
    mask_channels=4,
)


def _sam2(size: str, architecture: VideoArchitecture, parameters: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"sam2.1-hiera-{size}",
        architecture=architecture,
        parameters=parameters,
        native_size=1024,
        licence="Apache-2.0",
        hub_id=f"facebook/sam2.1-hiera-{size}",
        revision="main",
        norm="sam",
        about=f"SAM 2.1 {size}, a video model",
    )


# No commit and no hash of these could be verified; a download states the hash of what came.
VIDEO_MODELS: Mapping[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        _sam2("tiny", _TINY, 38_962_498),
        _sam2("small", _SMALL, 46_060_354),
        _sam2("base-plus", _BASE_PLUS, 80_850_178),
        _sam2("large", _LARGE, 224_446_642),
        BackboneSpec(
            name="medsam2",
            architecture=_TINY,
            parameters=38_962_498,
            native_size=512,
            licence="CC-BY-SA-4.0",
            hub_id="wanglab/MedSAM2",
            revision="main",
            safetensors=False,
            norm="sam",
            about="MedSAM2: SAM 2.1 tiny tuned with boxes",
        ),
        BackboneSpec(
            name="sam2-test",
            architecture=_TEST,
            parameters=1_073_265,
            native_size=64,
            norm="sam",
            about="random weights; a video model for tests",
        ),
    )
}
