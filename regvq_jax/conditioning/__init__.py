"""Conditions as arrays: captions to token ids."""
