"""Otsu, region growing, GrabCut and random walker from one click; GrabCut also from a box; and no image at all.

Every method takes a windowed image (S, S, C) in [0, 1] and a click (x, y) in its pixels, and gives a mask (S, S).
The numbers are keyword arguments; benchmarks/runs/zero_shot.toml holds the one setting that is used.
scikit-image (BSD-3-Clause) and OpenCV (Apache-2.0) are the optional dependencies `bench`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from steadysam.errors import InputError

Image = NDArray[np.float32]
MaskImage = NDArray[np.bool_]
Xy = tuple[int, int]

_LUMINANCE = (0.2125, 0.7154, 0.0721)  # ITU-R BT.709, as skimage.color.rgb2gray
_LEAST_TOLERANCE = 1 / 255  # one grey level of an 8-bit picture, for flat surroundings


def optional(name: str) -> Any:
    """A module of the optional dependencies.

    Raises:
        InputError: `BENCH_MISSING`.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            "BENCH_MISSING",
            f"the classical methods need {name.split('.')[0]}, which is not installed",
            expected="scikit-image and opencv-python-headless",
            fix='pip install -c constraints.txt -e ".[bench]", or leave these methods out with --methods',
        ) from error


def otsu(image: Image, click: Xy) -> MaskImage:
    """Otsu's threshold of the grey image (Otsu, 1979); the click says which side, and which connected part."""
    filters = optional("skimage.filters")
    grey = to_grey(image)
    if float(grey.min()) == float(grey.max()):
        return np.ones(grey.shape, bool)
    above = grey > float(filters.threshold_otsu(grey))
    return part_at(above == above[click[1], click[0]], click)


def region_growing(image: Image, click: Xy, *, smooth: float, window: int, multiple: float) -> MaskImage:
    """All that is connected to the click within `multiple` local standard deviations of its grey value.

    Args:
        smooth: standard deviation of the Gaussian before, pixels.
        window: side of the square around the click whose standard deviation is taken, pixels.
    """
    segmentation = optional("skimage.segmentation")
    grey = to_grey(image)
    half, (x, y) = window // 2, click
    around = grey[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
    tolerance = max(multiple * float(around.std()), _LEAST_TOLERANCE)
    smoothed = ndimage.gaussian_filter(grey, smooth)
    return segmentation.flood(smoothed, (y, x), tolerance=tolerance)


def grabcut(image: Image, click: Xy, *, disc: float, frame: int, near: float, rounds: int) -> MaskImage:
    """GrabCut (Rother et al., 2004) from a click: the connected part that holds it.

    Args:
        disc: radius of what is surely foreground, pixels.
        frame: width of the border that is surely background, pixels.
        near: within this radius a pixel starts as probable foreground, else as probable background.
        rounds: iterations.
    """
    cv2 = optional("cv2")
    away = distance_to(image.shape[:2], click)
    marks = np.where(away <= near, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    marks[border(image.shape[:2], frame)] = cv2.GC_BGD
    marks[away <= disc] = cv2.GC_FGD
    return part_at(_cut(cv2, image, marks, rounds), click)


def grabcut_box(image: Image, box: tuple[float, float, float, float], *, rounds: int, core: float) -> MaskImage:
    """GrabCut from a box x0, y0, x1, y1 (its outermost pixels): outside is background, its middle is foreground.

    Args:
        core: diameter of the disc in the middle that is surely foreground, as a share of the shorter side; without
            it all of a grey scan is found to be background.
    """
    cv2 = optional("cv2")
    x0, y0, x1, y1 = box
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    inside = ((rows >= y0) & (rows <= y1))[:, None] & ((columns >= x0) & (columns <= x1))[None, :]
    if inside.all() or not inside.any():  # nothing to tell apart
        return inside
    radius = max(1.0, core * min(x1 - x0, y1 - y0) / 2)
    marks = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    marks[distance_to(image.shape, ((x0 + x1) / 2, (y0 + y1) / 2)) <= radius] = cv2.GC_FGD
    return _cut(cv2, image, marks, rounds)


def random_walker(image: Image, click: Xy, *, disc: float, frame: int, beta: float) -> MaskImage:
    """Random walker (Grady, 2006) from a disc at the click against the border of the image.

    Args:
        disc, frame: as in `grabcut`.
        beta: how hard it is to cross an edge.
    """
    segmentation = optional("skimage.segmentation")
    if float(image.min()) == float(image.max()):  # no edges, and its weights would be 0 / 0
        return distance_to(image.shape, click) <= disc
    seeds = np.zeros(image.shape[:2], np.int32)
    seeds[border(seeds.shape, frame)] = 2
    seeds[distance_to(seeds.shape, click) <= disc] = 1
    found = segmentation.random_walker(
        image.astype(np.float64), seeds, beta=beta, mode="cg_j", tol=1e-4, prob_tol=1.0, channel_axis=-1
    )
    return found == 1


def disc_at(image: Image, click: Xy, *, radius: float) -> MaskImage:
    """A disc around the click, whatever the image shows: what a network that is blind would do."""
    return np.asarray(distance_to(image.shape, click) <= radius, bool)


def ellipse_in(image: Image, box: tuple[float, float, float, float]) -> MaskImage:
    """The ellipse that fills a box x0, y0, x1, y1, whatever the image shows."""
    x0, y0, x1, y1 = box
    rows, columns = np.indices(image.shape[:2])
    across, down = (columns - (x0 + x1) / 2) / ((x1 - x0 + 1) / 2), (rows - (y0 + y1) / 2) / ((y1 - y0 + 1) / 2)
    return np.asarray(across**2 + down**2 <= 1, bool)


CLASSICAL: dict[str, Callable[..., MaskImage]] = {
    "otsu": otsu,
    "region-growing": region_growing,
    "grabcut": grabcut,
    "random-walker": random_walker,
    "blind": disc_at,
}
BOXED: dict[str, Callable[..., MaskImage]] = {"grabcut": grabcut_box, "blind": ellipse_in}
_OF_BOX = {"grabcut": ("core", "rounds")}  # the settings that the box takes


def options_of(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a method's table in the suite says for a click, and what it says for a box."""
    options = {key: value for key, value in settings.items() if key not in ("seeds", "core")}
    return options, {key: settings[key] for key in _OF_BOX.get(name, ())}


def to_grey(image: Image) -> Image:
    """(S, S, 1 or 3) -> (S, S), luminance of a colour picture."""
    return image[..., 0] if image.shape[2] == 1 else (image @ np.array(_LUMINANCE, np.float32))


def part_at(mask: MaskImage, click: Xy) -> MaskImage:
    """The 4-connected part of `mask` that holds the click; empty if the click lies outside."""
    labels, _ = ndimage.label(mask)  # pyright: ignore
    here = int(labels[click[1], click[0]])
    return labels == here if here else np.zeros(mask.shape, bool)


def distance_to(shape: tuple[int, ...], click: tuple[float, float]) -> NDArray[np.float64]:
    """(S, S) distance of every pixel from the click, pixels."""
    rows, columns = np.indices(shape[:2])
    return np.hypot(columns - click[0], rows - click[1])


def border(shape: tuple[int, ...], width: int) -> MaskImage:
    """(S, S) True within `width` pixels of the border."""
    result = np.ones(shape[:2], bool)
    result[width : shape[0] - width, width : shape[1] - width] = False
    return result


def _cut(cv2: Any, image: Image, marks: NDArray[np.uint8], rounds: int) -> MaskImage:
    colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    bytes_ = np.ascontiguousarray(np.round(colour * 255).astype(np.uint8))
    cv2.setNumThreads(1)
    cv2.setRNGSeed(0)  # its mixture models start from k-means with a generator of its own
    cv2.grabCut(bytes_, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    return (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
