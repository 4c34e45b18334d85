"""SteadySAM: steady segmentation from shaky prompts."""

__version__ = "0.1.0"
