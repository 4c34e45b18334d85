"""How far are students from their teacher on test images? Mean KL(teacher || student) per edge of a box.

steadysam bench benchmarks/suites/ldfsam_cpu.toml --data FOLDER -o benchmarks/results/ldfsam --work work/ldfsam
python benchmarks/agreement.py --data FOLDER --work work/ldfsam -o benchmarks/results/ldfsam_agreement.md
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steadysam.backbones.checkpoints import read_safetensors
from steadysam.bench.group import Folders, Group
from steadysam.bench.suite import read_suite
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.detection.assign import task_aligned_assign
from steadysam.detection.boxes import boxes_of_mask
from steadysam.detection.distill import edge_divergence
from steadysam.detection.yolo import Detector
from steadysam.files import slug, write_text
from steadysam.methods.detecting import detector_images
from steadysam.runs import load_run

HERE = Path(__file__).parent
RUNS = {"detector": "none", "kd": "KD", "ld_main": "LD (main)", "ld": "LD (main + VLR)"}


def main() -> None:
    """Score every group of runs that is there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=HERE / "suites" / "ldfsam_cpu.toml")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--work", type=Path, required=True, help="the suite's folder of runs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    flags = parser.parse_args()
    suite, folders = read_suite(flags.suite), Folders(flags.data.resolve(), flags.work.resolve(), flags.work.resolve())
    found: dict[str, dict[str, list[float]]] = {}
    for target in suite.targets:
        for seed in suite.seeds:
            group = Group(suite, target, seed, folders)
            if all((group.folder / slug(run) / "weights.safetensors").exists() for run in RUNS):
                for run in RUNS:
                    found.setdefault(target, {}).setdefault(run, []).append(divergence(group, run))
    print(write_text(flags.output, table(found)))


def divergence(group: Group, run: str) -> float:
    """Mean over the test slices that have a foreground."""
    student = load_run(group.folder / slug(run), "cpu")
    config: Any = student.settings
    teacher = teacher_of(group.folder / slug("detector"), config.detector.teacher)
    size, values = config.detector.image_size, []
    for _, volume, mask in group.test:
        stack = prepare_stack(volume, student.preprocess, size)
        masks = fit_masks(mask.array, volume.grid, replace(stack.frame, size=size))
        for t in range(stack.depth):
            boxes = torch.from_numpy(boxes_of_mask(masks[t], config.detector.min_area))
            if len(boxes):
                values.append(one(student.model, teacher, detector_images(stack, slice(t, t + 1), size), boxes))
    return float(np.nanmean(values))


@torch.no_grad()
def one(model: Any, teacher: Detector, image: torch.Tensor, boxes: torch.Tensor) -> float:
    """The divergence on one image, at the locations that the student is responsible for."""
    own, taught = model.detector(image), teacher(image)
    truth = [(boxes, torch.zeros(len(boxes), dtype=torch.long))]
    return float(edge_divergence(own, taught, task_aligned_assign(own, truth)))


def teacher_of(run: Path, size: Any) -> Detector:
    """The teacher of a run, from the file of its stage."""
    teacher = Detector(size)
    state = read_safetensors(run / "checkpoints" / "teacher.safetensors")
    teacher.load_state_dict({name.removeprefix("teacher."): tensor for name, tensor in state.items()})
    return teacher.eval()


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: a line per target, a column per distillation; mean over seeds and their range."""
    text = [
        "Mean KL(teacher || student) per edge of a box on the test slices that hold the target, at temperature 1, over",
        "the locations that the task-aligned assigner gives to objects; in brackets the range over seeds.",
        "",
        "| target | " + " | ".join(RUNS.values()) + " | seeds |",
        "|" + "---|" * (len(RUNS) + 2),
    ]
    for target, runs in found.items():
        cells = [f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in runs.values()]
        text.append(f"| {target} | " + " | ".join(cells) + f" | {len(next(iter(runs.values())))} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
