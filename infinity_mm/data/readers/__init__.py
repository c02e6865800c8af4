"""Readers of training data, one file per layout on disk."""
