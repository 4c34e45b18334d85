"""Write medpy_golden.json: surface metrics of 100 random mask pairs by MedPy, a tool for maintainers.

MedPy is GPL and no dependency of the package; only its numbers are kept. To run again:
`pip install medpy==0.5.2` in a throw-away environment, then `python tests/parity/make_medpy_golden.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from medpy.metric import binary  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).parent))
from random_masks import random_pair  # noqa: E402

TARGET = Path(__file__).with_name("medpy_golden.json")


def main() -> None:
    """100 seeds; even ones are 2-D, odd ones 3-D."""
    rows = []
    for seed in range(100):
        pred, true, spacing = random_pair(seed)
        rows.append(
            {
                "seed": seed,
                "shape": list(pred.shape),
                "voxels": [int(pred.sum()), int(true.sum())],
                "hd95": float(binary.hd95(pred, true, voxelspacing=spacing)),
                "asd": float(binary.asd(pred, true, voxelspacing=spacing)),
                "assd": float(binary.assd(pred, true, voxelspacing=spacing)),
                "dice": float(binary.dc(pred, true)),
                "iou": float(binary.jc(pred, true)),
            }
        )
    TARGET.write_text(json.dumps({"medpy": "0.5.2", "connectivity": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
