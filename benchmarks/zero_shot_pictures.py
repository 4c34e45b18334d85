"""One slice per target: truth, one click, three clicks, box.

For eyes only: the pictures show images of the data sets, whose terms forbid passing them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from zero_shot_slices import CaseSlices, Choice, read_target

from steadysam.backbones import build_backbone
from steadysam.backbones.backbone import Backbone
from steadysam.data.slices import normalise
from steadysam.interactive import dice, to_slice
from steadysam.methods.slicewise import ask
from steadysam.prompts.clicks import next_click, tight_box
from steadysam.report.figures import Marks, Panel, strip, zoom_window
from steadysam.types import SlicePoints


@dataclass(frozen=True, eq=False)
class Shown:
    """What a user sees on one slice (H, W): masks after one and three clicks and with a box; the clicks."""

    one: NDArray[np.bool_]
    three: NDArray[np.bool_]
    box: NDArray[np.bool_]
    clicks: list[tuple[int, int]]
    positive: list[bool]


def examples(cells: Mapping[str, Mapping[str, Any]], suite: Mapping[str, Any], data: Path, model: str) -> bytes:
    """PNG with a row per target: the slice whose one-click Dice is the median of the target (first seed).

    Circles are clicks on the target, crosses are clicks beside it.
    """
    seed, rows, titles = suite["seeds"][0], [], []
    for target, cell in cells.items():
        choice = Choice(**cell["choice"])  # clicks depend on which slices of a case were chosen
        backbone = build_backbone(model, choice.size, seed=0)
        ranked = sorted((row for row in cell["rows"] if row["seed"] == seed), key=lambda row: row["one"])
        chosen = ranked[len(ranked) // 2]
        cases = read_target(data, target, suite["targets"][target], choice)
        case = next((c for c in cases if c.case == chosen["case"]), None)
        if case is None or chosen["slice"] not in case.indices:
            continue
        place = case.indices.index(chosen["slice"])
        rows.append(panels(case, place, show(backbone, cell["settings"]["norm"], case, place, seed)))
        titles.append(target)
    return strip(rows, titles, panel_inches=2.2, legend=False)


@torch.no_grad()
def show(backbone: Backbone, norm: str, case: CaseSlices, place: int, seed: int) -> Shown:
    """The rounds of `steadysam.interactive.simulate_user` on one slice, with the masks."""
    image, truth, frame = torch.from_numpy(case.images[place : place + 1]), case.truths[place], case.frame
    embedding = backbone.encode(normalise(image, norm)).to(torch.float16)  # pyright: ignore
    clicks, positive = [case.first_clicks(seed)[place]], [True]
    answers = ask(backbone, embedding, [_points(case, clicks, positive)])
    one = current = (to_slice(answers.logits[:, :1], frame) > 0)[0, 0].numpy()
    for _ in range(2):
        click, sign = next_click(truth, current)
        clicks.append(click)
        positive.append(sign)
        answers = ask(backbone, embedding, [_points(case, clicks, positive)], answers.logits[:, :1])
        current = (to_slice(answers.logits[:, :1], frame) > 0)[0, 0].numpy()
    box = replace(SlicePoints.empty(), box=frame.to_model(tight_box(truth).reshape(2, 2)).reshape(4))
    boxed = (to_slice(ask(backbone, embedding, [box]).logits[:, :1], frame) > 0)[0, 0].numpy()
    return Shown(one, current, boxed, clicks, positive)


def panels(case: CaseSlices, place: int, shown: Shown) -> list[Panel]:
    """Truth, one click, three clicks, box: zoomed to the truth and the masks."""
    image, truth = native_image(case, place), case.truths[place]
    window = zoom_window(truth.shape, truth, shown.one, shown.three, shown.box)
    x0, y0, x1, y1 = tight_box(truth).tolist()
    result = [Panel(image, "truth (line; answers are dashed)", true=truth, window=window)]
    for name, mask, count in (("one click", shown.one, 1), ("three clicks", shown.three, 3)):
        kinds = tuple("accepted" if sign else "rejected" for sign in shown.positive[:count])
        marks = Marks(np.array(shown.clicks[:count], float), kinds)
        result.append(_panel(image, f"{name}: Dice {dice(mask, truth):.2f}", truth, mask, window, marks=marks))
    result.append(
        _panel(image, f"box: Dice {dice(shown.box, truth):.2f}", truth, shown.box, window, box=(x0, y0, x1, y1))
    )
    return result


def native_image(case: CaseSlices, place: int) -> NDArray[np.float32]:
    """(H, W) or (H, W, 3): what the model sees, on the slice's own pixels."""
    back = to_slice(torch.from_numpy(case.images[place : place + 1]), case.frame)[0].numpy()
    return back[0] if len(back) == 1 else np.moveaxis(back, 0, -1)


def _panel(image: Any, title: str, truth: Any, mask: Any, window: Any, **more: Any) -> Panel:
    return Panel(image, title, true=truth, pred=mask, window=window, **more)


def _points(case: CaseSlices, clicks: list[tuple[int, int]], positive: list[bool]) -> SlicePoints:
    xy = case.frame.to_model(np.array(clicks, float))
    return SlicePoints(xy, np.array(positive), tuple(f"p{i}" for i in range(len(clicks))))
