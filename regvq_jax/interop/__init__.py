"""Weights and checkpoints of other projects."""
