"""What `export --with-code` writes works where neither this package nor jaxtyping can be imported."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from small_model import noise, small_model

from infinity_mm.errors import UserError
from infinity_mm.serving.with_code import code_files, export_with_code

PROMPT = "<|image|>and<|image|>What colour?"
SIZES = [(40, 30), (90, 40)]
"""One image that is not sliced, one that is."""

LOAD = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("infinity_mm", "jaxtyping"):
            raise ModuleNotFoundError(f"No module named {name!r}")
# A development environment may import the package when the interpreter starts.
sys.meta_path[:] = [Refuse(), *(f for f in sys.meta_path if not type(f).__module__.startswith("infinity_mm"))]
for name in [name for name in sys.modules if name.split(".")[0] == "infinity_mm"]:
    del sys.modules[name]
try:
    import torchvision
except RuntimeError:  # a torchvision for another torch; without it transformers needs none
    sys.modules["torchvision"] = None
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
folder, pictures = sys.argv[1], sys.argv[2]
code = {"trust_remote_code": True}
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **code).eval()
processor = AutoProcessor.from_pretrained(folder, **code)
images = [Image.open(f"{pictures}/{i}.png") for i in range(2)]
inputs = processor(images=images, text=[open(f"{pictures}/prompt.txt").read()], return_tensors="pt")
with torch.no_grad():
    torch.save(model(**inputs).logits, f"{pictures}/logits.pt")
classes = [AutoConfig.from_pretrained(folder, **code), AutoModel.from_pretrained(folder, **code), model]
classes += [processor, processor.image_processor]
print(*[type(thing).__name__ for thing in classes])
print([name for name in sys.modules if name.split(".")[0] in ("infinity_mm", "jaxtyping")])
"""


def saved(folder: Path, pictures: Path, views: Literal["uhd", "anyres"] = "uhd") -> torch.Tensor:
    """Save a model as the trainer does, and two pictures; return the logits they give."""
    model, processor = small_model(views)
    pictures.mkdir()
    images = [noise(size) for size in SIZES]
    for index, image in enumerate(images):
        image.save(pictures / f"{index}.png")
    (pictures / "prompt.txt").write_text(PROMPT)
    with torch.no_grad():
        inputs = processor(images=images, text=[PROMPT], return_tensors="pt")
        logits = model(**inputs).logits
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "optimizer.safetensors").write_bytes(b"large")
    return logits


@pytest.mark.parametrize("views", ["uhd", "anyres"])
def test_an_exported_checkpoint_gives_the_same_logits_without_the_package(
    views: Literal["uhd", "anyres"], tmp_path: Path
) -> None:
    expected = saved(tmp_path / "checkpoint", tmp_path / "pictures", views)
    code = export_with_code(str(tmp_path / "checkpoint"), tmp_path / "exported")
    assert not (tmp_path / "exported" / "trainer").exists()
    assert all(path.is_file() for path in code)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "exported"), str(tmp_path / "pictures")],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        | {"OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "InfinityMMConfig InfinityMMModel InfinityMMForConditionalGeneration"
        " InfinityMMProcessor InfinityMMImageProcessor",
        "[]",
    ]
    assert torch.equal(torch.load(tmp_path / "pictures" / "logits.pt"), expected)


def test_every_import_of_the_written_code_is_a_neighbour_or_a_library() -> None:
    files = code_files()
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files, (name, node.module)
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                assert not node.module.startswith("infinity_mm"), (name, node.module)


def test_the_files_name_where_they_come_from() -> None:
    first = code_files()["vision_slicing.py"].splitlines()[0]
    assert "from infinity_mm/vision/slicing.py, infinity-mm" in first


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint", tmp_path / "pictures")
    with pytest.raises(UserError, match="pictures exists already"):
        export_with_code(str(tmp_path / "checkpoint"), tmp_path / "pictures")


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(UserError, match="a model of type qwen2_5_vl"):
        export_with_code(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model in"):
        export_with_code(str(tmp_path), tmp_path / "out")
