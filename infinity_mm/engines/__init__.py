"""The only way to reach a model that is asked for text or likelihood."""
