"""Shards, manifest and journal on a local disk or any fsspec file system."""
