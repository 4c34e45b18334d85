"""An environment with stand-ins for nnU-Net's commands, which write what they were told and the files they owe."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

PLAN = """
folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset001_Target"
folder.mkdir(parents=True)
(folder / "splits_final.json").write_text("[]")
size = {"median_image_size_in_voxels": [9.0, 24.0, 16.0]}
half = 1 if "-gpu_memory_target" not in sys.argv else 2  # a patch of half the width, where memory is short
plans = {
    "2d": {"batch_size": 13, "patch_size": [24, 16 // half], **size},
    "3d_fullres": {"batch_size": 2, "patch_size": [10, 24, 16 // half], **size},
}
(folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": plans}))
"""
TRAIN = """
name = f"{given('-tr')}__nnUNetPlans__{sys.argv[2]}"
folder = Path(os.environ["nnUNet_results"]) / "Dataset001_Target" / name / "fold_0"
folder.mkdir(parents=True, exist_ok=True)
if (Path(os.environ["nnUNet_raw"]) / "fail").exists():
    print("RuntimeError: the loss is not what it was")
    sys.exit(1)
(folder / "checkpoint_final.pth").write_text("weights")
"""
# what is bright is foreground; like nnU-Net it writes an affine of its own making
PREDICT = """
import numpy as np
source, target = Path(given("-i")), Path(given("-o"))
target.mkdir(parents=True)
for path in sorted(source.iterdir()):
    if path.suffix == ".png":
        from PIL import Image
        pixels = np.asarray(Image.open(path).convert("L"))
        Image.fromarray((pixels > 145).astype(np.uint8)).save(target / path.name.replace("_0000", ""))
    else:
        import nibabel
        image = nibabel.load(path)
        mask = (np.asarray(image.dataobj) > 145).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), target / path.name.replace("_0000", ""))
"""
HEAD = """#!{python}
import json, os, sys
from pathlib import Path

def given(flag):
    return sys.argv[sys.argv.index(flag) + 1]

told = {{key: value for key, value in os.environ.items() if key.startswith("nnUNet_") or key == "PYTHONPATH"}}
with open({notes!r}, "a") as notes:
    notes.write(json.dumps({{"name": {name!r}, "words": sys.argv[1:], "told": told}}) + "\\n")
"""


def stand_in(folder: Path) -> Path:
    """Write the environment; what its commands were told is collected in `notes.jsonl`."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    bodies = {"nnUNetv2_plan_and_preprocess": PLAN, "nnUNetv2_train": TRAIN, "nnUNetv2_predict": PREDICT}
    for name, body in bodies.items():
        head = HEAD.format(python=sys.executable, notes=str(folder / "notes.jsonl"), name=name)
        (programs / name).write_text(head + body, "utf-8")
        (programs / name).chmod(stat.S_IRWXU)
    return folder


def notes(folder: Path) -> list[dict[str, Any]]:
    """What the commands were told, in order."""
    path = folder / "notes.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
