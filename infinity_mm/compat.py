"""Lets a CUDA build of torchvision be imported beside CPU-only torch, in every process that imports the package.

The torchvision wheel on PyPI is built against CUDA torch. Beside a CPU torch its C++ operators do not load, and
`import torchvision` fails because it registers shapes for an operator nobody declared. transformers, open_clip and
timm import torchvision for what is written in Python, so declaring the two operators is enough for them. Where
torchvision imports by itself nothing happens here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, final

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []
"""Keeps the declaring library alive: torch forgets the operators with it."""


def make_torchvision_importable() -> None:
    """From now on `import torchvision` declares its operators itself if they turn out to be missing."""
    if not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


@final
class _TorchvisionFinder(MetaPathFinder):
    """Finds torchvision as usual, but with our loader around its own; nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The wrapped spec of torchvision; None for every other module."""
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeclaringLoader(spec.loader)
        return spec


@final
class _DeclaringLoader(Loader):
    """Runs torchvision; if all that is wrong is an undeclared operator, declares it and runs it again."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As torchvision's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As torchvision's own loader, with one second chance; any other failure is raised as it came."""
        try:
            self._loader.exec_module(module)
            return
        except RuntimeError as error:
            if "operator torchvision::nms does not exist" not in str(error):
                raise
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)
        self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        """Everything else (`get_source`, `is_package`) is torchvision's own loader's."""
        return getattr(self._loader, name)
