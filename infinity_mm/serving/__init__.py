"""Serving a checkpoint: vLLM's plugin entry point, its server, and checkpoints that carry the model's code."""
