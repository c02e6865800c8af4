"""Readers: image folder, LLaVA JSON, the wind tunnel; each lists items with a key, a place and a licence."""
