"""An anchor-free detector (YOLOv8) whose box edges are distributions: network, boxes, assignment, losses, AP.

Coordinates are continuous pixels of the detector's image: pixel (0, 0) covers [0, 1) x [0, 1), and a mask whose
columns are c0..c1 has the edges x0 = c0 and x1 = c1 + 1. Boxes are float32 (x0, y0, x1, y1).

Importing this loads no torch; the files do.
"""

from __future__ import annotations

from steadysam.detection.table import SIZES, Size

__all__ = ["SIZES", "Size"]
