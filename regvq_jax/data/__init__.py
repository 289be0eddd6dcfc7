"""Data from disk to batches: sources, transforms, the Grain pipeline and the token cache."""
