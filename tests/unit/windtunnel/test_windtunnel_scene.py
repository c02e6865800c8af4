import hashlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.windtunnel.scene import Cosmetic, DocumentFacts, Line, Scene, ShapesFacts, Thing
from infinity_mm.windtunnel.world import sample_scene

SIGN = Scene(
    family="document",
    width=64,
    height=64,
    facts=DocumentFacts(kind="sign", background="red", lines=(Line(label="", value="STOP"),)),
    cosmetic=Cosmetic(seed=3, font_px=13),
)


@given(index=st.integers(0, 10_000), world_seed=st.integers(0, 3))
def test_a_scene_survives_json_unchanged(index: int, world_seed: int) -> None:
    scene = sample_scene(world_seed=world_seed, index=index, split="train")
    assert Scene.from_json(scene.to_json()) == scene
    assert Scene.from_json(scene.to_json()).to_json() == scene.to_json()


def test_the_json_of_a_sign_is_short_and_sorted() -> None:
    assert SIGN.to_json() == (
        '{"cosmetic":{"font_px":13,"seed":3},"facts":{"background":"red","kind":"sign",'
        '"lines":[{"label":"","value":"STOP"}]},"family":"document","height":64,"width":64}'
    )


def test_jitter_type_size_and_image_size_leave_the_content_hash_alone() -> None:
    redrawn = replace(SIGN, width=96, height=80, cosmetic=Cosmetic(seed=4, font_px=16))
    assert redrawn.content_hash() == SIGN.content_hash()


def test_one_other_word_changes_the_content_hash() -> None:
    assert isinstance(SIGN.facts, DocumentFacts)
    other = replace(SIGN, facts=replace(SIGN.facts, lines=(Line(label="", value="EXIT"),)))
    assert other.content_hash() != SIGN.content_hash()


def test_the_world_does_not_change_unnoticed() -> None:
    lines = [sample_scene(world_seed=0, index=i, split="train").to_json() for i in range(40)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "9c8765cd10037c0ec8b5beb85e5262f2f5217755965126f49b7dc4b7fe452f8d", (
        "sampling changed: shipped models and reported figures belong to another world now"
    )


def test_a_thing_knows_the_name_of_its_place() -> None:
    thing = Thing(shape="star", color="red", size="small", row=2, column=0)
    assert ShapesFacts(things=(thing,)).things[0].place == "bottom left"
