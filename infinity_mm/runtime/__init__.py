"""Runs passes over shards, locally or on Ray; the only package that imports Ray."""
