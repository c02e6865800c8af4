"""Training data in other people's formats: read into our published layout, written from it."""
