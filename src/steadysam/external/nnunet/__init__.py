"""nnU-Net v2 as an outside competitor: its own preprocessing, networks and training, on our data and splits.

It is no row of `METHODS`: it reads files itself, plans its own resolution and has its own loop. We export a split,
call its commands in its environment, and bring its masks back to the images' grids.
"""
