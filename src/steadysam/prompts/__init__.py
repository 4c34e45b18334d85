"""Prompts: read, written, checked, simulated, corrupted. A leaf: knows no images on disk, no models, no
torch.
"""
