"""Saving and loading through the Auto classes, each in a fresh process as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_vlm import model_and_processor, picture, prompt

from infinity_mm.model.configuration import InfinityMMConfig
from infinity_mm.model.processor import InfinityMMProcessor

ROOT = Path(__file__).parents[3]

LOAD = """
import torch
from PIL import Image
folder = {folder!r}
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder)
inputs = processor(images=[Image.open(folder + "/picture.png")], text=[open(folder + "/prompt.txt").read()],
                   return_tensors="pt")
with torch.no_grad():
    torch.save(model(**inputs).logits, folder + "/logits.pt")
assert model.dtype == torch.float32
"""

IMPORTS = {
    "ours first": "import infinity_mm\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n",
    "some of transformers first": "from transformers import AutoConfig\nimport infinity_mm\n"
    "from transformers import AutoModelForImageTextToText, AutoProcessor\n",
    "all of transformers first": "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
    "import infinity_mm\n",
}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchvision_imports_by_itself() -> bool:
    code = "import importlib.util as u; u.find_spec('torchvision') and __import__('torchvision')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Save model, processor and one example; return the example's logits."""
    model, processor = model_and_processor()
    image = picture(64, 40)
    image.save(folder / "picture.png")
    (folder / "prompt.txt").write_text(prompt(1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
        logits = model(**processor(images=[image], text=[prompt(1)], return_tensors="pt")).logits
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return logits


@pytest.mark.parametrize("order", sorted(IMPORTS))
def test_a_checkpoint_gives_the_same_logits_in_a_fresh_process(tmp_path: Path, order: str) -> None:
    if order == "all of transformers first" and not torchvision_imports_by_itself():
        pytest.skip(
            "torchvision does not fit this torch; transformers' processors need infinity_mm.compat first"
        )
    expected = saved(tmp_path)
    run(IMPORTS[order] + LOAD.format(folder=str(tmp_path)))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_weights_saved_in_half_precision_load_as_float32(tmp_path: Path) -> None:
    expected = saved(tmp_path, torch.float16)
    run(IMPORTS["ours first"] + LOAD.format(folder=str(tmp_path)))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, infinity_mm; print([m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_loading_a_configuration_does_not_import_the_model(tmp_path: Path) -> None:
    saved(tmp_path)
    code = (
        "import sys, infinity_mm\nfrom transformers import AutoConfig\n"
        f"config = AutoConfig.from_pretrained({str(tmp_path)!r})\n"
        "print(type(config).__name__, 'infinity_mm.model.modeling' in sys.modules)"
    )
    assert run(code).split() == ["InfinityMMConfig", "False"]


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import SiglipVisionConfig",
        "from infinity_mm.model.processor import InfinityMMProcessor",
    ],
)
def test_any_first_import_leaves_all_auto_classes_working(tmp_path: Path, first: str) -> None:
    saved(tmp_path)
    code = (
        f"import infinity_mm\n{first}\nfrom transformers import AutoModel, AutoImageProcessor, AutoTokenizer\n"
        f"folder = {str(tmp_path)!r}\n"
        "print(type(AutoModel.from_pretrained(folder)).__name__,"
        " type(AutoImageProcessor.from_pretrained(folder)).__name__, AutoTokenizer.from_pretrained(folder).eos_token)"
    )
    assert run(code).split() == ["InfinityMMModel", "InfinityMMImageProcessor", "<|im_end|>"]


def test_saved_configuration_plans_as_before(tmp_path: Path) -> None:
    model, processor = model_and_processor()
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = InfinityMMConfig.from_pretrained(tmp_path)
    assert again.slice_config() == model.config.slice_config()
    assert (
        InfinityMMProcessor.from_pretrained(tmp_path).image_processor.slice_config() == again.slice_config()
    )
