"""What is done with a released checkpoint: it is trained further and it answers in the engine."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_onevision import write_llava_next, write_transformers
from tiny_vlm import picture

from infinity_mm.config import build
from infinity_mm.doctor.packing import check_packing
from infinity_mm.engines.base import Failure, Reply, Request
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.errors import UserError
from infinity_mm.eval.memory_images import MemoryImages
from infinity_mm.eval.windtunnel import evaluate_windtunnel
from infinity_mm.model.attention import DENSE
from infinity_mm.model.load import load_model, load_sizes
from infinity_mm.record import ImageSlot, Text, Turn
from infinity_mm.training.config import DataConfig, SftConfig, StartConfig
from infinity_mm.training.sft import train
from infinity_mm.training.start import build_mixture, start_model
from infinity_mm.vision.anyres import AnyresPlan
from infinity_mm.vision.plans import plan_image

DATA = DataConfig(
    kind="windtunnel",
    options={"world_seed": 0, "num_images": 4, "exchanges_per_image": 1, "tasks": {"answer_short": 1.0}},
)

WORLD = {
    "name": "world",
    "kind": "windtunnel",
    "options": {"world_seed": 1, "num_images": 2, "questions_per_image": 1},
    "every_steps": 1,
    "max_new_tokens": 4,
}


@pytest.fixture(scope="module", params=["transformers", "next"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("use")
    write_transformers(folder / "transformers")
    if request.param == "next":
        write_llava_next(folder / "transformers", folder / "next")
    return folder / str(request.param)


def test_training_goes_on_from_it_and_resumes(folder: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "out_dir": tmp_path / "run",
        "model": {"path": str(folder), "convert": folder.name == "transformers"},
        "data": [{"kind": DATA.kind, "options": DATA.options}],
        "row_tokens": 1024, "global_batch_rows": 1, "micro_batch_rows": 1, "window": 4, "num_workers": 0,
        "steps": 2, "save_every_steps": 1, "threads": 1, "tasks": [WORLD],
    }  # fmt: skip
    first = train(build(SftConfig, plain, where="test"), quiet=True)
    assert first.images > 0
    assert first.model_dir is not None
    before, _ = load_model(folder)
    after, processor = load_model(first.model_dir)
    assert (
        after.config.view_config() == processor.image_processor.view_config() == before.config.view_config()
    )
    for name, own in after.state_dict().items():
        if name.endswith(("image_newline", "patch_embedding.weight", "up.weight", "norm.weight")):
            assert not torch.equal(own, before.state_dict()[name]), name
    resumed = train(build(SftConfig, {**plain, "steps": 3}, where="test"), quiet=True)
    assert resumed.steps == 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["tasks"]["world"]["failures"] for line in lines] == [0, 0, 0]


def test_adapters_are_trained_resumed_and_loaded_onto_it_again(folder: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "model": {"path": str(folder), "convert": folder.name == "transformers"},
        "data": [{"kind": DATA.kind, "options": DATA.options}],
        "row_tokens": 1024, "global_batch_rows": 1, "micro_batch_rows": 1, "window": 4, "num_workers": 0,
        "steps": 2, "save_every_steps": 1, "threads": 1, "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
        "language_model": {"lr": 1e-2},
    }  # fmt: skip

    def run(name: str, **changes: Any) -> Path:
        config = build(SftConfig, {**plain, "out_dir": tmp_path / name, **changes}, where="test")
        found = train(config, quiet=True).model_dir
        assert found is not None
        return found

    def losses(name: str) -> list[float]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    whole = run("whole")
    run("parts", steps=1)
    run("parts")
    assert losses("parts") == losses("whole")
    assert not list(whole.glob("model*.safetensors"))
    merged, processor = load_model(run("merged", lora={**plain["lora"], "merge": True}))
    adapted = PeftModel.from_pretrained(load_model(folder)[0], whole).eval()
    ids = torch.tensor([processor.tokenizer("What colour is the circle?").input_ids])
    with torch.no_grad():
        wanted, before, found = (
            model.eval()(input_ids=ids).logits for model in (merged, load_model(folder)[0], adapted)
        )
    assert (wanted - before).abs().max() > 0.01
    assert (wanted - found).abs().max() < 1e-4


def test_a_later_stage_may_cut_images_into_fewer_tiles(folder: Path) -> None:
    convert = folder.name == "transformers"
    start = StartConfig(path=str(folder), convert=convert, max_grid=2, max_tiles=1)
    started = start_model(start, build_mixture([DATA]))
    model, processor = started.model, started.processor
    assert model.config.view_config() == processor.image_processor.view_config()
    plan = plan_image(300, 100, model.config.view_config())
    assert isinstance(plan, AnyresPlan)
    assert plan.grid == (2, 1)
    assert (plan.unpadded, plan.shrunk) == ((14, 5), (11, 4))
    sizes, same = load_sizes(folder)
    assert sizes.view_config() == load_model(folder)[0].config.view_config()
    assert same.schema == processor.schema
    with pytest.raises(UserError, match="max_slices is given, but a model that cuts images by anyres"):
        start_model(StartConfig(path=str(folder), convert=convert, max_slices=2), build_mixture([DATA]))


def test_the_engine_cuts_an_image_among_others_differently(folder: Path) -> None:
    images = MemoryImages()
    refs = []
    for seed, size in enumerate([(200, 30), (30, 90)]):
        buffer = io.BytesIO()
        picture(*size, seed=seed).save(buffer, format="PNG")
        refs.append(images.add(buffer.getvalue(), *size))

    async def ask() -> list[Reply | Failure]:
        async with TransformersSpec(model=str(folder), threads=1).open(images) as engine:
            slots = tuple(ImageSlot(i) for i in range(2))
            one = Request(
                turns=(Turn("user", (slots[0], Text("What?"))),), images=(refs[0],), max_new_tokens=2
            )
            two = Request(
                turns=(Turn("user", (*slots, Text("What?"))),), images=tuple(refs), max_new_tokens=2
            )
            return [reply for request in (one, two, one) for reply in await engine.generate([request])]

    one, two, again = asyncio.run(ask())
    assert isinstance(one, Reply)
    assert isinstance(two, Reply)
    text = one.prompt_tokens - (49 + 5 * 29)  # four tiles of 7 x 7 in a row: 5 rows of 28 stay, with newlines
    assert two.prompt_tokens == text + 2 * 50
    assert again == one


def test_the_doctor_proves_its_packing_as_our_model(folder: Path) -> None:
    control, *results = check_packing(str(folder), DENSE, convert=folder.name == "transformers")
    assert control.verdict == "leaks"
    assert [(one.verdict, one.leak) for one in results] == [("isolated", 0.0)] * len(DENSE)
    assert all(one.change is not None and one.change > 0.1 for one in results)


def test_it_is_evaluated_like_any_model(folder: Path) -> None:
    result = evaluate_windtunnel(
        TransformersSpec(model=str(folder), threads=1),
        MemoryImages(),
        world_seed=1,
        num_images=2,
        questions_per_image=1,
    )
    assert result["num_questions"] == 2
    assert result["failures"] == 0
