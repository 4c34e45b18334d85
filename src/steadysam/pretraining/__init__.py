"""Pretraining of the promptable model on drawn images: configuration in, weights out."""
