"""The table of backbones. Reading it imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """The numbers that decide a SAM's shape (`transformers.SamConfig` without its defaults).

    Args:
        hidden, layers, heads, mlp: the image encoder's transformer.
        patch: pixels along one side of a token.
        window: window size of the windowed layers in tokens; 0 means that all layers are global.
        global_layers: the layers with global attention.
        channels: width of embeddings, prompt encoder and mask decoder.
        decoder_mlp, decoder_heads: the mask decoder's transformer.
        mask_channels: hidden channels of the mask prompt's convolutions.
        adapter: what stands beside the MLP of every layer of the encoder, if anything (`steadysam.backbones.med2d`).
    """

    hidden: int
    layers: int
    heads: int
    mlp: int
    patch: int = 16
    window: int = 14
    global_layers: tuple[int, ...] = ()
    channels: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    mask_channels: int = 16
    adapter: Literal["", "sam-med2d"] = ""

    @property
    def layers_with_global_attention(self) -> tuple[int, ...]:
        """`global_layers`, or all layers where there are no windows."""
        return self.global_layers if self.window else tuple(range(self.layers))


@dataclass(frozen=True)
class ConvArchitecture:
    """The numbers that decide the shape of our own convolutional model (`steadysam.backbones.conv`).

    Args:
        widths, depths: channels and residual blocks of the encoder's levels, at 1/4, 1/8, ... of the image.
        channels: C of the embedding, which has a quarter of the image's size.
        token_channels: E of prompt tokens; the decoder's width at 1/16.
        middle_channels: the decoder's width at 1/8.
        decoder_depth: residual blocks of the decoder's level at 1/16.
        decoder_mlp, decoder_heads: its two-way transformer.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    channels: int = 64
    token_channels: int = 128
    middle_channels: int = 96
    decoder_depth: int = 2
    decoder_mlp: int = 256
    decoder_heads: int = 4
    patch: int = 4


def architecture_from(values: Mapping[str, Any]) -> Architecture | ConvArchitecture:
    """The inverse of `dataclasses.asdict`, from JSON values; the two kinds differ in their keys."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return ConvArchitecture(**plain) if "widths" in plain else Architecture(**plain)


@dataclass(frozen=True)
class BackboneSpec:
    """One row of the table.

    Args:
        name: what users type.
        architecture: its shape, an `Architecture` or a `ConvArchitecture`.
        parameters: how many, at the native size.
        native_size: image size of the published weights, or the size the row was made for, in pixels.
        licence: SPDX name of the weights' licence; "" where there are no published weights.
        hub_id: repository of the weights on the Hugging Face hub; None for models trained from scratch.
        revision: commit of that repository (40 hex digits), or "main" where no commit could be verified.
        source: where the weights are published if not on that hub; somebody has to fetch and convert them.
        sha256: hash of `model.safetensors` at that revision, or in the package; None where it could not be verified.
        packaged: the weights come with the package.
        safetensors: False where the repository only holds pickled weights, which are refused.
        norm: the normalisation that the weights were trained with (`Preprocess.norm`).
        about: one line for `models list`.
    """

    name: str
    architecture: Any
    parameters: int
    native_size: int
    licence: str = ""
    hub_id: str | None = None
    revision: str = ""
    source: str = ""
    sha256: str | None = None
    packaged: bool = False
    safetensors: bool = True
    norm: Literal["spd", "sam", "medsam"] = "spd"
    about: str = ""

    @property
    def from_scratch(self) -> bool:
        """True if there are no weights anywhere: the model starts from random numbers."""
        return not self.published and not self.packaged

    @property
    def published(self) -> bool:
        """True if the weights are to be had somewhere outside the package."""
        return self.hub_id is not None or bool(self.source)

    @property
    def adapted(self) -> bool:
        """True if its image encoder has adapters, which were trained for one size and normalisation."""
        return bool(getattr(self.architecture, "adapter", ""))

    @property
    def own(self) -> bool:
        """True for the convolutional networks of this project."""
        return isinstance(self.architecture, ConvArchitecture)

    @property
    def packaged_file(self) -> Path:
        """Where the weights of a packaged row lie."""
        return Path(__file__).parent / "pretrained" / self.name / "model.safetensors"

    @property
    def pinned(self) -> bool:
        """True if the revision is a commit rather than a branch."""
        return len(self.revision) == 40


_VIT_B = Architecture(hidden=768, layers=12, heads=12, mlp=3072, global_layers=(2, 5, 8, 11))
_VIT_L = Architecture(hidden=1024, layers=24, heads=16, mlp=4096, global_layers=(5, 11, 17, 23))
_VIT_H = Architecture(hidden=1280, layers=32, heads=16, mlp=5120, global_layers=(7, 15, 23, 31))
_TINY = Architecture(
    hidden=128, layers=4, heads=4, mlp=512, patch=8, window=0, channels=96, decoder_mlp=384, decoder_heads=4
)
_TEST = Architecture(
    hidden=32,
    layers=2,
    heads=2,
    mlp=64,
    patch=8,
    window=0,
    channels=32,
    decoder_mlp=32,
    decoder_heads=2,
    mask_channels=4,
)

_CONV = ConvArchitecture(widths=(64, 128, 192, 256), depths=(2, 2, 3, 2))
_CONV_TEST = ConvArchitecture(
    widths=(16, 16, 24),
    depths=(1, 1, 1),
    channels=16,
    token_channels=32,
    middle_channels=16,
    decoder_depth=1,
    decoder_mlp=32,
    decoder_heads=2,
)

# Revisions and hashes are those that users of these commits have published; a download is compared with the
# hash here and with the one that the hub itself states.
BACKBONES: Mapping[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            name="steadysam-tiny",
            architecture=_CONV,
            parameters=8_874_600,
            native_size=256,
            licence="Apache-2.0",
            packaged=True,
            sha256="652d4acfd83e82a3bbc9dc2fa1668eb542665c2ab22ea245506a173422721d9b",
            about="our own, pretrained on drawn images; comes with the package, runs on a CPU",
        ),
        BackboneSpec(
            name="steadysam-tiny-scratch",
            architecture=_CONV,
            parameters=8_874_600,
            native_size=256,
            about="random weights; the network of steadysam-tiny",
        ),
        BackboneSpec(
            name="steadysam-test",
            architecture=_CONV_TEST,
            parameters=121_456,
            native_size=64,
            about="random weights; for tests",
        ),
        BackboneSpec(
            name="sam-tiny",
            architecture=_TINY,
            parameters=1_383_844,
            native_size=128,
            about="random weights; trains on a CPU at 96 to 256 px",
        ),
        BackboneSpec(
            name="sam-test",
            architecture=_TEST,
            parameters=73_507,
            native_size=64,
            about="random weights; for tests",
        ),
        BackboneSpec(
            name="sam-vit-base",
            architecture=_VIT_B,
            parameters=93_735_728,
            native_size=1024,
            licence="Apache-2.0",
            hub_id="facebook/sam-vit-base",
            revision="70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
            sha256="892c410e496344e527255ccdcb2cb7244a609acb5389c7c4fdba1288f861c579",
            norm="sam",
            about="Segment Anything, ViT-B",
        ),
        BackboneSpec(
            name="sam-vit-large",
            architecture=_VIT_L,
            parameters=312_343_088,
            native_size=1024,
            licence="Apache-2.0",
            hub_id="facebook/sam-vit-large",
            revision="6851e0441005b0fb96f2cc4dfac472f3d1b14af1",
            sha256="a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81",
            norm="sam",
            about="Segment Anything, ViT-L",
        ),
        BackboneSpec(
            name="sam-vit-huge",
            architecture=_VIT_H,
            parameters=641_090_864,
            native_size=1024,
            licence="Apache-2.0",
            hub_id="facebook/sam-vit-huge",
            revision="87aecf0df4ce6b30cd7de76e87673c49644bdf67",
            sha256="edfb0462392541fca9af44ff039bfb32dbd0c939997f3abb77a26e23af7afd7c",
            norm="sam",
            about="Segment Anything, ViT-H",
        ),
        BackboneSpec(
            name="medsam-vit-base",
            architecture=_VIT_B,
            parameters=93_735_728,
            native_size=1024,
            licence="Apache-2.0",
            hub_id="wanglab/medsam-vit-base",
            revision="de8488bca37bb1d4fb190f612c516126d739ce3b",
            safetensors=False,
            norm="medsam",
            about="MedSAM, ViT-B, trained with boxes",
        ),
        BackboneSpec(
            name="sam-med2d",
            architecture=replace(_VIT_B, adapter="sam-med2d"),
            parameters=271_242_032,
            native_size=256,
            licence="Apache-2.0",
            source="https://github.com/OpenGVLab/SAM-Med2D",
            safetensors=False,
            norm="sam",
            about="SAM-Med2D, ViT-B with adapters, 256 px",
        ),
        BackboneSpec(
            name="sam-med2d-test",
            architecture=replace(_TEST, adapter="sam-med2d"),
            parameters=125_859,
            native_size=64,
            about="random weights; for tests",
        ),
    )
}
