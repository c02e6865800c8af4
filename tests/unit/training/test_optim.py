"""Which parameter is trained how."""

from pathlib import Path

import pytest
from toy_run import model_and_encoder, tiny_config

from infinity_mm.errors import UserError
from infinity_mm.families import INFINITY_MM
from infinity_mm.families.base import part_of
from infinity_mm.training.optim import build_optimizer, freeze, set_lr

PARTS = INFINITY_MM.parts


def test_every_parameter_belongs_to_one_part() -> None:
    model, _ = model_and_encoder()
    assert {part_of(name, PARTS) for name, _ in model.named_parameters()} == {
        "vision_tower",
        "connector",
        "language_model",
    }
    with pytest.raises(UserError, match=r"the parameter extra\.weight belongs to no known part"):
        part_of("extra.weight", PARTS)


def test_norms_biases_and_embeddings_do_not_decay(tmp_path: Path) -> None:
    model, _ = model_and_encoder()
    config = tiny_config(
        tmp_path,
        vision_tower={"lr": 0.1, "weight_decay": 0.5},
        connector={"lr": 0.2, "weight_decay": 0.5},
        language_model={"lr": 0.3, "weight_decay": 0.5},
    )
    optimizer = build_optimizer(model, config, PARTS)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay.keys() == set(names.values())
    assert decay["model.language_model.embed_tokens.weight"] == 0.0
    assert decay["model.vision_tower.embeddings.position_embedding.weight"] == 0.0
    assert decay["model.vision_tower.post_layernorm.weight"] == 0.0
    assert decay["model.connector.up.bias"] == 0.0
    assert decay["model.connector.up.weight"] == 0.5
    assert decay["model.language_model.layers.0.mlp.up_proj.weight"] == 0.5


def test_parts_have_their_own_rates_and_frozen_ones_none(tmp_path: Path) -> None:
    model, _ = model_and_encoder()
    config = tiny_config(
        tmp_path, vision_tower={"freeze": True}, connector={"lr": 0.2}, language_model={"lr": 0.4}
    )
    freeze(model, config, PARTS)
    optimizer = build_optimizer(model, config, PARTS)
    set_lr(optimizer, 0.5)
    assert {(g["part"], g["lr"]) for g in optimizer.param_groups} == {
        ("connector", 0.1),
        ("language_model", 0.2),
    }


def test_freezing_everything_is_refused(tmp_path: Path) -> None:
    frozen = {"freeze": True}
    with pytest.raises(UserError, match="every part of the model is frozen"):
        tiny_config(tmp_path, vision_tower=frozen, connector=frozen, language_model=frozen)
