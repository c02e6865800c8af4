"""The Aquila-VL-style model: a SigLIP tower over image slices, a merging connector, a decoder-only language model.

Importing this package is light; `configuration`, `modeling`, `processor` and so on are imported by name, or by
transformers' Auto classes after `import infinity_mm`.
"""
