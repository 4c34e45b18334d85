"""PNG and JPEG as one-slice volumes.

The array is the picture as a viewer shows it: an EXIF rotation is applied first, so prompts and masks refer
to what people see. A picture of W x H pixels becomes `(W, H, 1)` grey or `(W, H, 1, 3)` colour. Pixels have
no size in mm.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError, OutputError, ResourceError
from steadysam.files import atomic_write

log = logging.getLogger(__name__)

_TURN = 0x0112  # the EXIF tag of the orientation; 1 is as stored
_GREY_MODES = ("L", "I", "I;16", "I;16B", "F")


def picture_shape(path: Path, max_bytes: int) -> tuple[int, int, int]:
    """`(W, H, 1)` after the EXIF rotation, from the header alone."""
    with _opened(path, max_bytes) as image:
        width, height = image.size
        turned = image.getexif().get(_TURN, 1) in (5, 6, 7, 8)
    return (height, width, 1) if turned else (width, height, 1)


def read_picture(path: Path, max_bytes: int) -> NDArray[Any]:
    """Grey `(W, H, 1)` (8 or 16 bit, full range) or colour `(W, H, 1, 3)` uint8; palettes become colours.

    Raises:
        InputError: `IMG_CHANNELS` (alpha, CMYK, 16-bit colour), `IMG_TRUNCATED`, `IMG_CORRUPT`.
        ResourceError: `IMG_TOO_LARGE`.
    """
    pixels, mode = _pixels(path, max_bytes, palette_to_colour=True)
    if mode not in (*_GREY_MODES, "RGB", "1"):
        raise _channels(path, mode)
    if mode == "1":
        pixels = pixels.astype(np.uint8)
    return pixels[:, :, None]


def read_picture_labels(path: Path, max_bytes: int) -> NDArray[Any]:
    """A label picture `(W, H, 1)`: grey values or palette indices are the labels.

    Raises:
        InputError: `LABEL_LOSSY` for JPEG, `IMG_CHANNELS` for colours; else as `read_picture`.
    """
    with open(path, "rb") as handle:
        if handle.read(3) == b"\xff\xd8\xff":
            raise InputError(
                "LABEL_LOSSY",
                "JPEG changes values: it cannot hold labels",
                file=path,
                fix="export the labels as PNG",
            )
    pixels, mode = _pixels(path, max_bytes, palette_to_colour=False)
    if mode == "RGB" and (pixels == pixels[:, :, :1]).all():
        return pixels[:, :, None, 0]
    if mode not in (*_GREY_MODES, "P", "1"):
        raise _channels(path, mode)
    return pixels.astype(np.uint8)[:, :, None] if mode == "1" else pixels[:, :, None]


def write_picture(path: Path, array: NDArray[Any]) -> Path:
    """`(W, H, 1[, 3])` as stored -> a PNG of H rows, 8 or 16 bit grey, or 8 bit colour, checked before it is there.

    Raises:
        InputError: `IMG_CHANNELS` for values that a PNG cannot hold. OutputError: `OUTPUT_VERIFY`.
    """
    from PIL import Image

    pixels = np.ascontiguousarray(array[:, :, 0].swapaxes(0, 1))
    small = pixels.dtype.kind == "b" or (pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() < 256)
    if small and pixels.dtype != np.uint16:
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype != np.uint16:
        raise InputError("IMG_CHANNELS", "a PNG cannot hold these values", file=path, seen=pixels.dtype)

    def produce(temporary: Path) -> None:
        Image.fromarray(pixels).save(temporary, format="PNG")
        with Image.open(temporary, formats=("PNG",)) as written:
            if not np.array_equal(np.asarray(written), pixels):
                raise OutputError("OUTPUT_VERIFY", "what was written is not what was meant", file=path)

    return atomic_write(path, produce)


def _opened(path: Path, max_bytes: int) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # our own limit decides about size
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise ResourceError("IMG_TOO_LARGE", "the picture claims too many pixels", file=path) from error
    except (UnidentifiedImageError, SyntaxError, OSError, ValueError) as error:
        raise InputError("IMG_CORRUPT", f"the picture's header cannot be read: {error}", file=path) from error
    needed = image.width * image.height * len(image.getbands()) * (4 if image.mode in ("I", "F") else 1)
    if needed > max_bytes:
        image.close()
        raise ResourceError(
            "IMG_TOO_LARGE",
            "the picture is larger than the limit",
            file=path,
            seen=needed,
            expected=max_bytes,
        )
    return image


def _pixels(path: Path, max_bytes: int, palette_to_colour: bool) -> tuple[NDArray[Any], str]:
    """Pixels with x first, `(W, H[, C])`, and Pillow's mode."""
    from PIL import ImageOps

    _check_png(path, max_bytes)
    with _opened(path, max_bytes) as image:
        if palette_to_colour and ("A" in image.mode or "transparency" in image.info):
            raise _channels(path, f"{image.mode} with transparency")
        try:
            image.load()
            if image.mode == "P" and palette_to_colour:
                log.info("%s: palette replaced by its colours", path)
                image = image.convert("RGB")
            if image.getexif().get(_TURN, 1) != 1:
                log.info("%s: turned as its EXIF data say", path)
            shown = ImageOps.exif_transpose(image)
        except OSError as error:
            raise InputError(
                "IMG_TRUNCATED", f"the picture is cut: {error}", file=path, fix="copy or download it again"
            ) from error
        except (SyntaxError, ValueError) as error:
            raise InputError("IMG_CORRUPT", f"the picture is damaged: {error}", file=path) from error
        array = np.asarray(shown)
        return np.ascontiguousarray(array.swapaxes(0, 1)), shown.mode


def _check_png(path: Path, max_bytes: int) -> None:
    """Chunk checksums, and 16-bit colour, which Pillow would cut to 8 bits without a word."""
    with open(path, "rb") as handle:
        head = handle.read(26)
    if not head.startswith(b"\x89PNG"):
        return
    depth, colour = head[24], head[25]
    if depth == 16 and colour != 0:
        raise _channels(path, "16 bits per colour")
    with _opened(path, max_bytes) as image:
        try:
            image.verify()
        except (SyntaxError, OSError, ValueError) as error:
            code = "IMG_TRUNCATED" if "runcated" in str(error) else "IMG_CORRUPT"
            raise InputError(code, f"the picture is damaged: {error}", file=path) from error


def _channels(path: Path, mode: str) -> InputError:
    return InputError(
        "IMG_CHANNELS",
        "channels of this picture are not supported",
        file=path,
        seen=mode,
        expected="grey (8 or 16 bit), palette, or RGB with 8 bits, without alpha",
        fix="flatten the picture: remove alpha, convert CMYK to RGB",
    )
