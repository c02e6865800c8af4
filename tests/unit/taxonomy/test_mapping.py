from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from infinity_mm.errors import UserError
from infinity_mm.record import Tag
from infinity_mm.taxonomy.mapping import MappingConfig, Seed, TypeMapping, fit_mapping
from infinity_mm.taxonomy.seeds import load_seeds
from infinity_mm.taxonomy.tree import Tree

SEEDS = [
    Seed(tags=("street", "car"), type="count"),
    Seed(tags=("street", "sign"), type="read"),
    Seed(tags=("sign",), type="read"),
]


def test_the_weights_are_those_of_the_documented_formula() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"])
    street, car = 0.5 * (math.log(3 / 3) + 1), 0.5 * (math.log(3 / 2) + 1)
    length = math.hypot(street, car)
    assert mapping.weights["count"] == pytest.approx({"street": street / length, "car": car / length})


def test_a_tag_of_one_type_weighs_more_than_a_tag_of_all() -> None:
    weights = fit_mapping(SEEDS, ["count", "read"]).weights["count"]
    assert weights["car"] > weights["street"] > 0


def test_types_are_ranked_by_the_score_weighted_mean_over_the_images_tags() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"])
    scores = mapping.score([Tag(name="sign", score=0.9), Tag(name="car", score=0.3)])
    assert list(scores) == ["read", "count"]
    assert scores["count"] == pytest.approx(0.3 * mapping.weights["count"]["car"] / 1.2)


def test_an_image_with_no_or_unknown_tags_suits_nothing() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"])
    assert mapping.score([]) == {}
    assert mapping.score([Tag(name="whale", score=1.0)]) == {}


def test_seeds_of_unknown_types_are_left_out_and_types_without_seeds_have_no_weights() -> None:
    mapping = fit_mapping(SEEDS, ["count", "empty"])
    assert mapping.weights["empty"] == {}
    assert set(mapping.weights) == {"count", "empty"}


def test_the_artifact_can_be_read_both_ways() -> None:
    plain = json.loads(fit_mapping(SEEDS, ["count", "read"]).to_json({"tree": "x"}))
    assert plain["tree"] == "x"
    assert list(plain["best_tags_of_type"]["count"]) == ["car", "street"]
    assert list(plain["best_types_of_tag"]["street"]) == ["count", "read"]


def test_the_order_of_seeds_does_not_matter() -> None:
    shuffled = random.Random(0).sample(SEEDS, len(SEEDS))
    types = ["count", "read"]
    assert fit_mapping(SEEDS, types) == fit_mapping(shuffled, types)


@pytest.mark.parametrize(
    ("config", "street", "car"),
    [
        (MappingConfig(tf="count", idf="none", unit_length=False), 2.0, 1.0),
        (MappingConfig(tf="share", idf="none", unit_length=False), 2 / 3, 1 / 3),
        (MappingConfig(tf="log", idf="none", unit_length=False), 1 + math.log(2), 1.0),
        (MappingConfig(tf="count", idf="plain", unit_length=False), None, math.log(2)),
        (MappingConfig(tf="count", idf="smooth", unit_length=False), 2.0, math.log(3 / 2) + 1),
        (MappingConfig(tf="count", idf="none"), 2 / math.sqrt(5), 1 / math.sqrt(5)),
    ],
)
def test_every_variant_is_its_formula(config: MappingConfig, street: float | None, car: float) -> None:
    seeds = [*SEEDS, Seed(tags=("street",), type="count")]
    row = fit_mapping(seeds, ["count", "read"], config).weights["count"]
    assert row == pytest.approx({"car": car} | ({} if street is None else {"street": street}))


@pytest.mark.parametrize(("aggregation", "score"), [("weighted_mean", 1.3 / 1.5), ("sum", 1.3), ("max", 1.0)])
def test_tags_are_put_together_as_the_configuration_says(aggregation: Any, score: float) -> None:
    mapping = TypeMapping(
        weights={"count": {"car": 2.0, "street": 0.3}}, config=MappingConfig(aggregation=aggregation)
    )
    tags = [Tag(name="car", score=0.5), Tag(name="street", score=1.0)]
    assert mapping.score(tags)["count"] == pytest.approx(score)


def test_a_mapping_is_read_back_as_it_was_written() -> None:
    mapping = fit_mapping(SEEDS, ["count", "read"], MappingConfig(aggregation="max"))
    again = TypeMapping.from_json(mapping.to_json({"tree": "x"}))
    assert again.config == mapping.config
    assert again.weights["read"] == pytest.approx(mapping.weights["read"], abs=1e-6)


def test_wind_tunnel_seeds_cover_every_type_with_questions() -> None:
    tree = Tree.load("windtunnel")
    seeds = load_seeds("windtunnel", tree, num_scenes=60)
    assert {seed.type for seed in seeds if seed.question} == set(tree.leaves)


def test_tree_seeds_are_the_typical_tags_of_its_types() -> None:
    tree = Tree.load("default")
    seeds = load_seeds("tree", tree, num_scenes=1)
    assert [seed.type for seed in seeds] == list(tree.leaves)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "a row cannot be read"),
        ('{"tags": ["duck"]}', "`type` is no string"),
        ('{"tags": "duck", "type": "count"}', "`tags` is no list of strings"),
        ("[]", "no object"),
        ('{"tags": ["duck"], "type": "no/such/type"}', "no type `no/such/type`"),
    ],
)
def test_a_faulty_seed_is_an_error_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"tags": ["text"], "type": "fine_single/text/sign_text"}\n' + line + "\n")
    with pytest.raises(UserError, match=message) as error:
        load_seeds(str(file), Tree.load("default"), num_scenes=1)
    assert "line 2" in str(error.value)


def test_a_seed_may_be_labelled_with_an_alias(tmp_path: Path) -> None:
    tree = Tree.load("default")
    path, alias = next((path, leaf.aliases[0]) for path, leaf in tree.leaves.items() if leaf.aliases)
    file = tmp_path / "seeds.jsonl"
    file.write_text(json.dumps({"tags": ["text"], "type": alias.upper()}) + "\n")
    assert load_seeds(str(file), tree, num_scenes=1) == [Seed(tags=("text",), type=path)]
