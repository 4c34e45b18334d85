"""Drawn abdominal MRI-like volumes with a diseased bowel loop beside healthy look-alikes, for demo and tests.

The target is a stretch of one bowel loop with a thick bright wall. The loop goes on beyond both ends of the
target with a healthy look, and other healthy loops (`twins`: same size, same shape) wind beside it and touch
it.
A click on a twin therefore lies on a plausible object, and a centreline that overshoots stays inside bowel.
Nothing here is anatomy; it only has the difficulties of anatomy that matter for noisy prompts.
"""

from steadysam.phantom.case import SHAPE, SPACING_MM, PhantomCase, draw_case
from steadysam.phantom.dataset import draw_dataset
from steadysam.phantom.shaky import shaky_centerline

__all__ = ["SHAPE", "SPACING_MM", "PhantomCase", "draw_case", "draw_dataset", "shaky_centerline"]
