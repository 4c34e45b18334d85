"""Which slices are prompted, and with what: on every slice, or on one key slice. Pure; never the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from steadysam.methods.boxes import box_of_points
from steadysam.types import Decision, SlicePoints

Lane = Literal["all", "key", "box"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a video model is asked.

    Args:
        prompts: the conditioning slices and their prompts, in pixels of the stack; empty if nothing is asked.
        key: the slice from which the answer is carried both ways; None if nothing is asked.
    """

    prompts: Mapping[int, SlicePoints]
    key: int | None

    def order(self, depth: int) -> list[tuple[int, bool]]:
        """(slice, whether it is reached backwards) of the slices without prompts, in the order of the propagation."""
        if self.key is None:
            return []
        steps = [(t, False) for t in range(self.key + 1, depth)] + [(t, True) for t in range(self.key - 1, -1, -1)]
        return [(t, back) for t, back in steps if t not in self.prompts]


def key_slice(points: Sequence[SlicePoints]) -> int | None:
    """The slice with most positive points, one with a given box before all others; None without any.

    Of equal ones, that nearest to the middle between the first and the last prompted slice; then the first.
    """
    rank = [(here.box is not None, int(here.positive.sum())) for here in points]
    prompted = [t for t, (boxed, count) in enumerate(rank) if boxed or count]
    if not prompted:
        return None
    middle = (prompted[0] + prompted[-1]) / 2
    best = max(rank)
    return min((t for t in prompted if rank[t] == best), key=lambda t: (abs(t - middle), t))


def make_plan(points: Sequence[SlicePoints], lane: Lane, size: int, least: float) -> Plan:
    """The plan for D slices of points in pixels of a `size` x `size` image.

    `all`: every slice that has a prompt; `key`: the key slice with its prompts; `box`: the key slice with its given
    box, or else with the box of its positive points.

    Args:
        least: smallest side of a box of points, in the same pixels.
    """
    if lane == "all":
        prompts = {t: here for t, here in enumerate(points) if len(here) or here.box is not None}
        return Plan(prompts, min(prompts, default=None))
    key = key_slice(points)
    if key is None:
        return Plan({}, None)
    here = points[key]
    if lane == "box":
        box = here.box if here.box is not None else box_of_points(here, size, least)
        here = replace(SlicePoints.empty(), box=box)
    return Plan({key: here}, key)


def prompt_tensors(prompt: SlicePoints, scale: float, device: torch.device) -> dict[str, Tensor]:
    """The prompt as SAM 2 takes it: points (1, 1, N, 2) and labels (1, 1, N): 1, 0, and 2, 3 for a box's two corners.

    Args:
        scale: pixels of the video model per pixel of the stack; centres of pixels are integers in both.
    """
    corners = np.zeros((0, 2), np.float32) if prompt.box is None else prompt.box.reshape(2, 2)
    xy = (np.concatenate([corners, prompt.xy.reshape(-1, 2)]).astype(np.float64) + 0.5) * scale - 0.5
    labels = np.concatenate([np.array([2, 3][: len(corners)], np.int32), prompt.positive.astype(np.int32)])
    return {
        "point_coords": torch.from_numpy(xy.astype(np.float32))[None, None].to(device),
        "point_labels": torch.from_numpy(labels)[None, None].to(device),
    }


def decide(points: Sequence[SlicePoints], lane: Lane, key: int | None) -> tuple[Decision, ...]:
    """What became of every point."""
    rows = []
    for t, here in enumerate(points):
        for name, (x, y), positive in zip(here.ids, here.xy, here.positive, strict=True):
            accepted, reason = _verdict(lane, key, t, here.box is not None, bool(positive))
            verdict = "accepted" if accepted else "ignored"
            rows.append(Decision(name, t, t, verdict, reason, xy=(float(x), float(y))))
    return tuple(rows)


def _verdict(lane: Lane, key: int | None, t: int, boxed: bool, positive: bool) -> tuple[bool, str]:
    if lane == "all":
        return True, "not checked: this method obeys every prompt"
    if t != key:
        return False, "not on the key slice" if key is not None else "no positive point on any slice"
    if lane == "key":
        return True, "on the key slice; not checked"
    if boxed:
        return False, "the slice has a box of its own"
    return positive, "part of the key slice's box; not checked" if positive else "a box is made of positive points"


def largest_component(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D, S, S) with only the largest part above 0.5 left there; voxels that touch at a corner are connected."""
    labels, count = ndimage.label(probability > 0.5, structure=np.ones((3, 3, 3)))  # pyright: ignore
    if count < 2:
        return probability
    largest = 1 + int(np.bincount(labels[labels > 0] - 1).argmax())
    return np.where((labels > 0) & (labels != largest), np.float32(0), probability)
