"""Makes transformers' Auto classes know our model, whichever of the two packages is imported first.

    import infinity_mm --> install() --> a finder on sys.meta_path
    transformers.models.auto.* is imported  --> our class *names* are added to its name tables, nothing is imported
    an Auto class needs one of the names    --> transformers.models.infinity_mm, a stand-in that imports our file

`import infinity_mm` must import neither torch nor transformers, and importing our classes while transformers is
still importing itself would be circular. Transformers resolves its own models lazily from tables of names; this file
adds rows to those tables, so that our model takes the same path as a built-in one.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODEL_TYPE = "infinity_mm"
_STAND_IN = "transformers.models.infinity_mm"

_HOME = {
    "InfinityMMConfig": "infinity_mm.model.configuration",
    "InfinityMMModel": "infinity_mm.model.modeling",
    "InfinityMMForConditionalGeneration": "infinity_mm.model.modeling",
    "InfinityMMImageProcessor": "infinity_mm.model.image_processor",
    "InfinityMMProcessor": "infinity_mm.model.processor",
}
"""Where each class really is."""

_ROWS: dict[str, dict[str, Any]] = {
    "transformers.models.auto.configuration_auto": {"CONFIG_MAPPING_NAMES": "InfinityMMConfig"},
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING_NAMES": "InfinityMMModel",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "InfinityMMForConditionalGeneration",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "InfinityMMForConditionalGeneration",
    },
    "transformers.models.auto.image_processing_auto": {
        # One class for both backends: ours resizes with Pillow, and torchvision would only bring other pixels.
        "IMAGE_PROCESSOR_MAPPING_NAMES": dict.fromkeys(("pil", "torchvision"), "InfinityMMImageProcessor")
    },
    "transformers.models.auto.processing_auto": {"PROCESSOR_MAPPING_NAMES": "InfinityMMProcessor"},
}
"""The row each table of each Auto module gets for our model type."""


def install() -> None:
    """Add our rows now where transformers is already imported, else when it is; safe to call twice."""
    for name in _ROWS:
        if name in sys.modules:
            _add_rows(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _add_rows(module: ModuleType) -> None:
    """Add our rows to the tables of one Auto module."""
    for table, row in _ROWS[module.__name__].items():
        getattr(module, table)[_MODEL_TYPE] = row
    for mapping in vars(module).values():
        # A mapping built before `import infinity_mm` took its copy of the configuration names without ours.
        if hasattr(type(mapping), "_load_attr_from_module"):
            mapping._reverse_config_mapping["InfinityMMConfig"] = _MODEL_TYPE


class _Finder(MetaPathFinder):
    """Finds the Auto modules as usual but with our loader around theirs, and the stand-in; nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an Auto module or of the stand-in; None for every other module."""
        if fullname == _STAND_IN:
            return ModuleSpec(fullname, _StandInLoader())
        if fullname not in _ROWS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RowAdder(spec.loader)
        return spec


class _RowAdder(Loader):
    """Runs a module as its own loader does, then adds our rows to it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader, then our rows."""
        self._loader.exec_module(module)
        _add_rows(module)

    def __getattr__(self, name: str) -> Any:
        """Everything else (`get_source`, `is_package`) is the module's own loader's."""
        return getattr(self._loader, name)


class _StandInLoader(Loader):
    """Makes `transformers.models.infinity_mm`, whose attributes are imported from our files on first use."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module a lazy `__getattr__`."""

        def attribute(name: str) -> type:
            if name not in _HOME:
                raise AttributeError(f"module {_STAND_IN!r} has no attribute {name!r}")
            return getattr(importlib.import_module(_HOME[name]), name)

        module.__dict__["__getattr__"] = attribute
