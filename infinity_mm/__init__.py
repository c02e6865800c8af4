"""Infinity-MM workbench: images in, instruction data and a fine-tuned vision-language model out."""

from infinity_mm._register import install
from infinity_mm.compat import make_torchvision_importable

__version__ = "0.1.0"

make_torchvision_importable()
install()
