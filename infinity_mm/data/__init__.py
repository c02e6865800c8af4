"""Training side: chat template, packing, collation, mixing, resumable loading."""
