"""The words of the house: frozen values that functions take and return.

Axes and frames
    Arrays of volumes are in the order of the stored file, `(I, J, K)` or `(I, J, K, 3)` for colour pictures.
    World coordinates are RAS+ millimetres (`_mm`), as in NIfTI. Files in LPS are converted where they are read.
    A slice is seen as an image `(H, W)`: x runs along the first remaining array axis, y along the second.
    Pixel and voxel centres lie at integers. `_xy` is (x, y), `_xyxy` is (x0, y0, x1, y1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.files import content_key

PromptSource = Literal["human", "centerline", "scribble", "simulated", "detector", "ground_truth"]
Sign = Literal["positive", "negative"]
Verdict = Literal["accepted", "rejected", "added", "ignored"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an array lie in the patient.

    Args:
        shape: `(I, J, K)`, in voxels.
        affine: (4, 4) float64, voxel index -> RAS+ millimetres, exactly as stored in the file.
        slice_axis: 0, 1 or 2; slices are cut across this axis.
        header: the NIfTI header to copy into outputs on the same grid, or None.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    slice_axis: int = 2
    header: Any = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the array axes, in mm."""
        i, j, k = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return (i, j, k)

    @property
    def plane_axes(self) -> tuple[int, int]:
        """The array axes along which a slice's x and y run."""
        x_axis, y_axis = (axis for axis in range(3) if axis != self.slice_axis)
        return x_axis, y_axis

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.shape[self.slice_axis]

    @property
    def slice_shape(self) -> tuple[int, int]:
        """`(H, W)` of one slice."""
        x_axis, y_axis = self.plane_axes
        return self.shape[y_axis], self.shape[x_axis]

    @property
    def slice_spacing_mm(self) -> tuple[float, float]:
        """`(row, column)` pixel size of one slice, in mm."""
        x_axis, y_axis = self.plane_axes
        return self.spacing_mm[y_axis], self.spacing_mm[x_axis]

    def key(self) -> str:
        """Hash of shape and affine; two files with the same key have the same grid."""
        return content_key(list(self.shape), np.asarray(self.affine, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Volume:
    """An image: array and grid. A 2-D picture is a volume of one slice.

    Args:
        array: `(I, J, K)` grey or `(I, J, K, 3)` colour, as stored (scaling applied), finite.
        grid: geometry.
        name: case name (file name without extension and channel number).
        sha256: hash of the file's bytes ("" for arrays that never were a file).
        has_physical_spacing: False for pictures, whose pixels have no size in mm.
    """

    array: NDArray[Any]
    grid: Grid
    name: str = "volume"
    sha256: str = ""
    has_physical_spacing: bool = True

    def slice_image(self, index: int) -> NDArray[Any]:
        """Slice `index` as `(H, W)` or `(H, W, 3)`."""
        return take_slice(self.array, self.grid, index)


@dataclass(frozen=True, eq=False)
class Mask:
    """A binary mask `(I, J, K)` bool on a grid."""

    array: NDArray[np.bool_]
    grid: Grid

    def slice_image(self, index: int) -> NDArray[np.bool_]:
        """Slice `index` as `(H, W)`."""
        return take_slice(self.array, self.grid, index)


def take_slice(array: NDArray[Any], grid: Grid, index: int) -> NDArray[Any]:
    """`(I, J, K[, C])` -> slice `(H, W[, C])`, a view where NumPy can give one."""
    return np.take(array, index, axis=grid.slice_axis).swapaxes(0, 1)


def put_slices(slices: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """`(D, H, W)` -> `(I, J, K)`, the inverse of `take_slice` over all slices."""
    return np.ascontiguousarray(np.moveaxis(slices.swapaxes(1, 2), 0, grid.slice_axis))


def stack_slices(array: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """`(I, J, K[, C])` -> `(D, H, W[, C])`."""
    return np.moveaxis(array, grid.slice_axis, 0).swapaxes(1, 2)


@dataclass(frozen=True)
class Point:
    """One click. `xyz_mm` is RAS+ millimetres."""

    id: str
    xyz_mm: tuple[float, float, float]
    sign: Sign = "positive"
    label: str = ""
    source: PromptSource = "human"
    annotator: str = ""
    description: str = ""


@dataclass(frozen=True)
class Box:
    """A box: centre and three half-axes, RAS+ millimetres. A box on one slice has a third half-axis of zero."""

    id: str
    centre_mm: tuple[float, float, float]
    half_axes_mm: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    label: str = ""
    source: PromptSource = "human"
    annotator: str = ""
    description: str = ""


@dataclass(frozen=True)
class ImageRef:
    """The image that prompts were drawn on, as far as the prompt file tells."""

    name: str = ""
    shape: tuple[int, int, int] | None = None
    grid_key: str = ""


@dataclass(frozen=True)
class Prompts:
    """All prompts of one case.

    Args:
        points, boxes: rows, in file order.
        image: the image they belong to, if the file said so.
        history: how they came to be: one JSON-able dict per simulator or corruption applied, in order.
    """

    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    image: ImageRef = ImageRef()
    history: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.points) + len(self.boxes)

    @property
    def sources(self) -> tuple[str, ...]:
        """Distinct sources, sorted; goes into every result."""
        return tuple(sorted({row.source for row in (*self.points, *self.boxes)}))

    def points_mm(self) -> NDArray[np.float64]:
        """(N, 3) RAS+ mm."""
        return np.array([point.xyz_mm for point in self.points], dtype=np.float64).reshape(-1, 3)

    def with_points(self, points: tuple[Point, ...], **step: Any) -> Prompts:
        """The same prompts with other points; `step`, if given, is added to the history."""
        return replace(self, points=points, history=(*self.history, step) if step else self.history)

    def key(self) -> str:
        """Hash of coordinates (to 1e-6 mm), signs, labels and sources; the name of a prompt set in every result."""
        return content_key(
            [[p.id, [round(c, 6) for c in p.xyz_mm], p.sign, p.label, p.source] for p in self.points],
            [
                [b.id, [round(c, 6) for row in (b.centre_mm, *b.half_axes_mm) for c in row], b.label, b.source]
                for b in self.boxes
            ],
        )


@dataclass(frozen=True, eq=False)
class SlicePoints:
    """The points of one slice, in pixels of whichever image the holder says (slice or model).

    Args:
        xy: (K, 2) float32.
        positive: (K,) bool.
        ids: prompt ids, K of them.
        box: (4,) float32 x0, y0, x1, y1, for methods that take a box beside or instead of points; else None.
    """

    xy: NDArray[np.float32]
    positive: NDArray[np.bool_]
    ids: tuple[str, ...]
    box: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, keep: NDArray[np.bool_]) -> SlicePoints:
        """The points where `keep` (K,) is true."""
        return SlicePoints(self.xy[keep], self.positive[keep], tuple(np.array(self.ids, dtype=object)[keep]), self.box)

    @staticmethod
    def empty() -> SlicePoints:
        """No points."""
        return SlicePoints(np.zeros((0, 2), np.float32), np.zeros(0, bool), ())


@dataclass(frozen=True)
class Preprocess:
    """How a slice becomes a model input.

    Args:
        size: the model's image is `size` x `size` pixels.
        fit: `stretch` (the paper) or `pad` (keep the aspect ratio, pad right and bottom).
        window: `percentile` (0.5-99.5 % of non-zero voxels of the volume), `range` (minimum to maximum), or
            `ct:WIDTH,LEVEL` in HU.
        norm: `spd` ([-1, 1]), `sam` (ImageNet mean and deviation) or `medsam` ([0, 1]).
    """

    size: int = 512
    fit: Literal["stretch", "pad"] = "stretch"
    window: str = "percentile"
    norm: Literal["spd", "sam", "medsam"] = "spd"


@dataclass(frozen=True)
class Frame:
    """The map between pixels of a slice `(height, width)` and pixels of the model's `size` x `size` image.

    Centres of pixels are integers, so x_model = (x_slice + 1/2) * scale - 1/2, as in `interpolate` with
    `align_corners=False`.
    """

    height: int
    width: int
    size: int
    fit: Literal["stretch", "pad"] = "stretch"

    @property
    def fitted_hw(self) -> tuple[int, int]:
        """`(h, w)` of the part of the model image that the slice fills."""
        if self.fit == "stretch":
            return self.size, self.size
        longest = max(self.height, self.width)
        return max(1, round(self.height * self.size / longest)), max(1, round(self.width * self.size / longest))

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Model pixels per slice pixel along x and y."""
        fitted_h, fitted_w = self.fitted_hw
        return fitted_w / self.width, fitted_h / self.height

    def to_model(self, xy: NDArray[Any]) -> NDArray[np.float32]:
        """(K, 2) slice pixels -> (K, 2) model pixels."""
        return ((np.asarray(xy, np.float64) + 0.5) * self.scale_xy - 0.5).astype(np.float32).reshape(-1, 2)

    def to_slice(self, xy: NDArray[Any]) -> NDArray[np.float32]:
        """(K, 2) model pixels -> (K, 2) slice pixels."""
        return ((np.asarray(xy, np.float64) + 0.5) / self.scale_xy - 0.5).astype(np.float32).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class SliceStack:
    """A volume as a model sees it.

    Args:
        images: (D, C, S, S) float32 in [0, 1]: windowed and fitted, not yet normalised; C is 1 or 3.
        frame: slice pixels <-> model pixels, the same for all slices.
        preprocess: how it was made.
        key: content hash of voxels, geometry of the cut and preprocessing (names cached embeddings).
        coarse: (D, S, S) bool, a mask to be refined, for methods that refine one.
        detail: (D, C, F, F) uint8, [0, 1] as 0 to 255, the same slices at F pixels, same window and fit, for methods
            that look at two sizes; `key` does not depend on it.
    """

    images: NDArray[np.float32]
    frame: Frame
    preprocess: Preprocess
    key: str
    coarse: NDArray[np.bool_] | None = None
    detail: NDArray[np.uint8] | None = None

    @property
    def depth(self) -> int:
        """Number of slices."""
        return len(self.images)


@dataclass(frozen=True)
class Decision:
    """What became of one prompt on one slice, and the evidence.

    Args:
        prompt_id: id in the prompt file.
        slice: the slice on which the decision was taken.
        from_slice: the slice on which the prompt was placed (differs from `slice` when it was added).
        verdict: accepted, rejected, added (from a neighbour), ignored (not a kind the method uses).
        reason: one short clause for people.
        saliency_own: saliency at the point on `from_slice`; None where no saliency was computed.
        saliency_here: saliency at the point on `slice`.
        neighbours: (slice, saliency at the same pixel) for the slices of the context window.
        xy: the point in slice pixels.
    """

    prompt_id: str
    slice: int
    from_slice: int
    verdict: Verdict
    reason: str
    saliency_own: float | None = None
    saliency_here: float | None = None
    neighbours: tuple[tuple[int, float], ...] = ()
    xy: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a method returns for one stack, all in model pixels.

    Args:
        probability: (D, S, S) float32 in [0, 1].
        saliency: (D, S, S) float32 in [0, 1], or None for methods without one.
        points: the points given to the decoder, one entry per slice.
        decisions: the audit (`xy` in model pixels until the action floor maps them back).
        notes: plain facts for the run record, such as the number of slices with an empty consensus.
    """

    probability: NDArray[np.float32]
    saliency: NDArray[np.float32] | None = None
    points: tuple[SlicePoints, ...] = ()
    decisions: tuple[Decision, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
