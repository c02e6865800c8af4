"""Synthesis: stages, one file each, and the journey of one image through them; nothing here imports Ray."""
