"""Instruction types, the image-tag vocabulary, and the mapping between them."""
