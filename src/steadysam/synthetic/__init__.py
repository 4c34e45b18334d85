"""Training images that are drawn from random numbers alone, with every object's mask and prompts on them.

Everything is a function of a `torch.Generator` and works in batches on the generator's device. Lengths of shapes are
in half image widths: the image runs from -1 to 1 along x and y, and slices of a slab differ in z.
"""
