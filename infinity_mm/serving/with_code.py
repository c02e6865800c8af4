"""A checkpoint with the model's code beside it, for machines without this package.

    checkpoint --copy--> folder;  infinity_mm/model/*.py and what they import --imports made relative--> folder/*.py
    config.json, processor_config.json --auto_map--> AutoModel...from_pretrained(folder, trust_remote_code=True)

The files are the package's own, one for one; only their imports are rewritten, because transformers copies code that
imports its neighbours (`from .errors import explain`) and nothing below or above them.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import infinity_mm
from infinity_mm.engines.model_files import model_folder
from infinity_mm.errors import explain
from infinity_mm.storage.files import whole_folder

_PACKAGE = "infinity_mm"
_AUTO_MAP = {
    "config.json": {
        "AutoConfig": "infinity_mm.model.configuration:InfinityMMConfig",
        # The model without head: servers put their own in its place.
        "AutoModel": "infinity_mm.model.modeling:InfinityMMModel",
        "AutoModelForImageTextToText": "infinity_mm.model.modeling:InfinityMMForConditionalGeneration",
        "AutoModelForMultimodalLM": "infinity_mm.model.modeling:InfinityMMForConditionalGeneration",
    },
    "processor_config.json": {
        "AutoProcessor": "infinity_mm.model.processor:InfinityMMProcessor",
        "AutoImageProcessor": "infinity_mm.model.image_processor:InfinityMMImageProcessor",
    },
}
"""What each file's `auto_map` says, by module and class."""
_OPTIONAL_SHAPES = """\
try:
    {line}
except ImportError:  # the shapes in annotations are for readers; Annotated takes the same arguments
    from typing import {stand_ins}"""
_HEADER = "# Written by `infinity-mm export --with-code` from {source}, infinity-mm {version}, Apache License 2.0.\n"


def export_with_code(model: str, out: Path) -> list[Path]:
    """Copy a checkpoint to the new folder `out`, with the code it needs; returns the files of code.

    `model` is a shipped model, a checkpoint folder or a Hub id. Subfolders (the optimiser) stay behind. Raises
    `UserError` if `out` exists or the model is not one of ours.
    """
    where = "infinity-mm export --with-code"
    if out.exists():
        raise explain(what=f"{out} exists already", where=where, fix="name a new folder with --out")
    checkpoint = model_folder(model, None)
    model_type = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type != _PACKAGE:
        raise explain(
            what=f"{checkpoint} is a model of type {model_type}, whose code is not ours to write",
            where=where,
            fix="export a checkpoint that train/sft.py wrote; any other loads in transformers as it is",
        )
    with whole_folder(out) as folder:
        for file in sorted(path for path in checkpoint.iterdir() if path.is_file() and path.suffix != ".py"):
            shutil.copyfile(file, folder / file.name)
        for name, classes in _AUTO_MAP.items():
            _add_auto_map(folder / name, classes)
        code = code_files()
        for name, text in code.items():
            (folder / name).write_text(text, encoding="utf-8")
    return [out / name for name in code]


def code_files() -> dict[str, str]:
    """File name -> text of every module that the model needs, found by following imports."""
    waiting = sorted({path.split(":")[0] for classes in _AUTO_MAP.values() for path in classes.values()})
    sources: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = _source(module)
            waiting += [imported for _, imported in _own_imports(ast.parse(sources[module]))]
    return {_file_name(module): _rewritten(module, sources[module]) for module in sorted(sources)}


def _add_auto_map(path: Path, classes: dict[str, str]) -> None:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    auto_map = {}
    for auto, target in classes.items():
        module, _, name = target.partition(":")
        auto_map[auto] = f"{_stem(module)}.{name}"
    content["auto_map"] = auto_map
    if "AutoImageProcessor" in auto_map:
        # AutoProcessor reads its parts' classes from the part's own section.
        content["image_processor"]["auto_map"] = {"AutoImageProcessor": auto_map["AutoImageProcessor"]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def _stem(module: str) -> str:
    """`infinity_mm.vision.slicing` -> `vision_slicing`."""
    return module.removeprefix(f"{_PACKAGE}.").replace(".", "_")


def _file_name(module: str) -> str:
    return f"{_stem(module)}.py"


def _own_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every `from infinity_mm.some.module import name`, the only form that can be rewritten."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == _PACKAGE for name in names), (
                f"line {node.lineno}: import {names}"
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if (node.module or "").split(".")[0] == _PACKAGE:
                yield node.lineno, str(node.module)


def _rewritten(module: str, text: str) -> str:
    """The module's text with our imports made relative, and jaxtyping wanted but not needed."""
    tree = ast.parse(text)
    lines = text.splitlines()
    for line, imported in _own_imports(tree):
        lines[line - 1] = lines[line - 1].replace(f"from {imported} ", f"from .{_stem(imported)} ", 1)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping":
            stand_ins = ", ".join(f"Annotated as {alias.name}" for alias in node.names)
            last = node.end_lineno or node.lineno
            written = _OPTIONAL_SHAPES.format(line=ast.unparse(node), stand_ins=stand_ins)
            lines[node.lineno - 1 : last] = [written, *[""] * (last - node.lineno)]
    header = _HEADER.format(source=module.replace(".", "/") + ".py", version=infinity_mm.__version__)
    return header + "\n".join(lines) + "\n"
