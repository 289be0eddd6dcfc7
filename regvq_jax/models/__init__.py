"""Flax Linen networks with scalar fields; no losses and no config objects."""
