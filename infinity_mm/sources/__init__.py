"""Readers: image folder, LLaVA JSON, the wind tunnel; each lists items with an id, a place and a licence."""
