"""`steadysam segment-click`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from steadysam.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from steadysam.types import Grid, Prompts

log = logging.getLogger(__name__)

Many = Annotated[tuple[str, ...], Parameter(negative="")]


def segment_click(
    image: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    point: Many = (),
    negative: Many = (),
    box: Many = (),
    prompts: Path | None = None,
    mask: Path | None = None,
    model: Annotated[str, Parameter(name=["--model", "-m"])] = "steadysam-tiny",
    device: Annotated[str, Parameter(name=["--device", "-d"])] = "auto",
    size: int = 0,
    window: str = "percentile",
    slice_axis: Literal[0, 1, 2] | None = None,
) -> None:
    """Segment what a click, a box or a rough mask asks for: no training, no download.

    Writes CASE.nii.gz (of a PNG or JPEG CASE.png), the mask that the model trusts most, on the image's own grid; where
    one click leaves open whether a part or the whole is meant, two more as CASE.mask2 and CASE.mask3; CASE.click.json
    with the predicted IoU of each on every slice; and CASE.click.png to look at. On volumes each slice
    with a prompt is answered by itself, and slices without one stay empty.

    For example:

    One click on a picture, at pixel x = 120, y = 80; on slice 7 of a volume, a click, and one that says "not this":

        steadysam segment-click lesion.png --point 120,80 -o out
        steadysam segment-click heart.nii.gz --point 96,110,7 --negative 130,110,7 -o out

    A box, clicks placed in 3D Slicer, and an earlier mask to be corrected:

        steadysam segment-click heart.nii.gz --box 80,90,120,140,7 -o out
        steadysam segment-click ct.nii.gz --prompts clicks.mrk.json --window ct:400,40 -o out
        steadysam segment-click heart.nii.gz --mask rough.nii.gz --point 96,110,7 -o out

    Parameters
    ----------
    image
        Image file (NIfTI, NRRD, MHA, PNG, JPEG).
    output
        Folder to write.
    point
        A click on the object, in voxel indices i,j,k of the file (x,y for pictures); any number of times.
    negative
        A click beside the object.
    box
        i0,j0,i1,j1,k in voxel indices (x0,y0,x1,y1 for pictures); the last number is the slice.
    prompts
        A prompt file, in addition.
    mask
        A rough mask on the same grid: one more prompt where it is not empty.
    model
        A row of `steadysam models list` with weights, or a weights file.
    device
        auto, cpu, cuda, cuda:N or mps.
    size
        Side of the model's image in pixels; 0 takes what the weights were made for.
    window
        percentile, range, or ct:WIDTH,LEVEL in HU.
    slice_axis
        Axis across which slices are cut; default: the largest spacing decides.
    """
    from steadysam.clicks import segment_clicks
    from steadysam.data.volumes import read_label_map, read_volume
    from steadysam.outputs import refuse_output
    from steadysam.prompts.files import read_prompts
    from steadysam.runs import zero_shot_run
    from steadysam.types import Mask

    refuse_output(output, ())
    volume = read_volume(image, slice_axis=slice_axis)
    given = read_prompts(prompts, volume.grid) if prompts else None
    asked = _prompts(volume.grid, point, negative, box, given)
    prior = None
    if mask:
        labels, grid = read_label_map(mask, slice_axis=volume.grid.slice_axis)
        prior = Mask(labels > 0, grid)
    run = zero_shot_run(model, device, size=size, window=window)
    result = segment_clicks(run, volume, asked, prior=prior)
    for line in write_result(output, volume, asked, result, run):
        log.info("%s", line)


def _prompts(
    grid: Grid, point: tuple[str, ...], negative: tuple[str, ...], box: tuple[str, ...], more: Prompts | None
) -> Prompts:
    """Prompts of the command line, beside those of a file."""
    from dataclasses import replace

    from steadysam.geometry import voxel_to_ras
    from steadysam.types import Box, Point, Prompts

    base = more or Prompts()
    points = list(base.points)
    for texts, sign in ((point, "positive"), (negative, "negative")):
        for text in texts:
            ijk = _numbers(text, grid, "--point" if sign == "positive" else "--negative")
            place = tuple(float(v) for v in voxel_to_ras(ijk, grid)[0])
            points.append(Point(f"click-{len(points) + 1}", place, sign))  # pyright: ignore
    boxes = list(base.boxes)
    for text in box:
        boxes.append(_box(text, grid, f"box-{len(boxes) + 1}", Box))
    return replace(base, points=tuple(points), boxes=tuple(boxes))


def _numbers(text: str, grid: Grid, flag: str) -> np.ndarray:
    """`i,j,k`, or `x,y` on an image of one slice -> (3,) voxel indices."""
    import numpy as np

    parts = _floats(text, flag)
    if len(parts) == 2 and grid.depth == 1:
        parts.insert(grid.slice_axis, 0.0)
    if len(parts) != 3:
        raise UsageError(
            "CLICK_SYNTAX",
            f"{flag} {text} does not fit this image",
            seen=f"{len(parts)} numbers",
            expected="i,j,k in voxel indices" + (", or x,y" if grid.depth == 1 else ""),
        )
    return np.array(parts)


def _box(text: str, grid: Grid, name: str, kind):  # noqa: ANN001, ANN202
    """`i0,j0,i1,j1[,k]` -> a box on one slice, as centre and half axes in mm."""
    import numpy as np

    from steadysam.geometry import voxel_to_ras

    parts = _floats(text, "--box")
    if len(parts) == 4 and grid.depth == 1:
        parts.append(0.0)
    if len(parts) != 5:
        raise UsageError(
            "CLICK_SYNTAX",
            f"--box {text} does not fit this image",
            seen=f"{len(parts)} numbers",
            expected="i0,j0,i1,j1,k in voxel indices" + (", or x0,y0,x1,y1" if grid.depth == 1 else ""),
        )
    low = np.insert(np.array(parts[:2]), grid.slice_axis, parts[4])
    high = np.insert(np.array(parts[2:4]), grid.slice_axis, parts[4])
    centre = voxel_to_ras((low + high) / 2, grid)[0]
    half = np.diag((high - low) / 2) @ grid.affine[:3, :3].T
    return kind(name, tuple(map(float, centre)), tuple(tuple(map(float, row)) for row in half))


def _floats(text: str, flag: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError("CLICK_SYNTAX", f"{flag} {text} is not numbers with commas between", seen=text) from error


def write_result(output: Path, volume, prompts, result, run) -> list[str]:  # noqa: ANN001
    """Masks, JSON and picture of one case, together or not at all; returns what to say."""
    from steadysam.data.volumes import mask_ending, write_mask
    from steadysam.files import files_together, write_bytes, write_json
    from steadysam.report.clickpicture import click_picture

    stem, ending = volume.name, mask_ending(volume)
    names = [f"{stem}{ending}", *(f"{stem}.mask{i}{ending}" for i in range(2, len(result.masks) + 1))]
    record = {
        "image": {"name": volume.name, "sha256": volume.sha256},
        "model": run.config.backbone.name,
        "weights_sha256": run.record["weights_sha256"],
        "prompts_hash": prompts.key(),
        "preprocess": run.config.preprocess.model_dump(mode="json"),
        "masks": names,
        "predicted_iou": {str(t): list(values) for t, values in result.iou.items()},
        "voxels": [int(mask.array.sum()) for mask in result.masks],
    }
    with files_together(output) as part:
        for name, mask in zip(names, result.masks, strict=True):
            write_mask(part / name, mask)
        write_json(part / f"{volume.name}.click.json", record)
        write_bytes(part / f"{volume.name}.click.png", click_picture(volume, result))
    best = max(values[0] for values in result.iou.values())
    return [
        f"{output / names[0]}: {record['voxels'][0]} voxels, predicted IoU up to {best:.2f}",
        f"{output / (volume.name + '.click.png')} shows {len(names)} mask(s)",
    ]
