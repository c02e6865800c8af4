"""Infinity-MM workbench: images in, instruction data and a fine-tuned vision-language model out."""

from infinity_mm._register import install

__version__ = "0.1.0"

install()
