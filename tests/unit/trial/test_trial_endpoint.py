from __future__ import annotations

import asyncio

import pytest

from infinity_mm.errors import UserError
from infinity_mm.trial.commands import images_folder, next_commands
from infinity_mm.trial.endpoint import (
    Listing,
    Served,
    choose_model,
    list_models,
    read_models,
    without_credentials,
)
from infinity_mm.trial.settings import Settings

MODELS = ("Qwen/Qwen2.5-VL-7B-Instruct", "OpenGVLab/InternVL3-8B")


def listing(*models: str) -> Listing:
    return Listing(base_url="http://gpu:8000/v1", models=models)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("qwen2.5-vl-7b-instruct", MODELS[0]),
        ("Qwen/Qwen2.5-VL-7B", MODELS[0]),
        ("InternVL3", MODELS[1]),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(given: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean --model {near}"):
        choose_model(listing(*MODELS), given)


def test_the_only_model_needs_no_name_and_a_server_without_a_list_takes_any() -> None:
    assert choose_model(listing("a"), None) == "a"
    assert choose_model(Listing(base_url="http://x", models=None), "b") == "b"
    with pytest.raises(UserError, match="--model"):
        choose_model(Listing(base_url="http://x", models=None), None)


@pytest.mark.parametrize("body", ["", "[]", "<html>", '{"data": {}}', '{"data": [{}]}', '{"data": null}'])
def test_what_is_no_list_of_models_is_none(body: str) -> None:
    assert read_models(body) in (None, ())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost:8000", "write --endpoint http://localhost:8000"),
        ("http://me:secret@gpu/v1", "write --endpoint http://gpu/v1"),
        ("http://gpu/v1?key=secret", "write --endpoint http://gpu/v1"),
    ],
)
def test_an_address_that_will_not_do_is_told_without_its_secrets(address: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        asyncio.run(list_models(address))
    assert "secret" not in str(error.value)


def test_an_address_is_shown_without_credentials() -> None:
    assert without_credentials("https://a:b@host:1/v1?k=v") == "https://host:1/v1"


def test_next_commands_are_quoted_for_the_shell(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("my photos")
    settings = Settings(images=(f"{folder}/**/*.jpg",), endpoint="http://x/v1", api_key_env="KEY")
    first, _ = next_commands(settings, Served(base_url="http://x/v1", model="m"))
    assert first == (
        f"infinity-mm init synth.yaml --images '{folder}' --endpoint http://x/v1 --model m --api-key-env KEY"
    )
    assert images_folder([f"{folder}/a.jpg", str(folder)]) == str(folder)


def test_the_folder_of_a_trial_follows_from_the_command_but_not_from_the_number_of_pictures() -> None:
    one = Settings(images=("a",), endpoint="http://x/v1", num_pictures=5)
    more = Settings(images=("a",), endpoint="http://x/v1", num_pictures=50)
    other = Settings(images=("b",), endpoint="http://x/v1", num_pictures=5)
    assert one.folder("org/VLM 7B") == more.folder("org/VLM 7B") != other.folder("org/VLM 7B")
    assert one.folder("org/VLM 7B").name.startswith("vlm-7b-")
