"""The small promptable network of our own: a convolutional encoder and decoder behind SAM's three verbs."""
