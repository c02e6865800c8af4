"""Training exchanges about scenes: shown as pictures, or told in words."""

from infinity_mm.windtunnel.tasks import WindTunnelTasks

COMMON = {"world_seed": 1, "num_images": 4, "exchanges_per_image": 3, "tasks": {"answer_short": 1.0}}


def test_a_scene_told_in_words_has_its_dense_caption_in_place_of_the_picture() -> None:
    told = WindTunnelTasks(**COMMON, shown="text")[1]  # pyright: ignore[reportArgumentType]
    seen = WindTunnelTasks(**COMMON)[1]  # pyright: ignore[reportArgumentType]
    assert told.images == ()
    assert len(seen.images) == 1
    assert [message.role for message in told.messages] == ["system", *["user", "assistant"] * 3]
    assert [message.role for message in seen.messages] == ["user", "assistant"] * 3
    assert told.messages[0].text.startswith(("The image shows a bar chart", "This is a bar chart"))
    assert all(message.text.endswith("Answer with a word or phrase.") for message in told.messages[1::2])


def test_the_two_are_different_data_to_a_run_that_is_resumed() -> None:
    told = WindTunnelTasks(**COMMON, shown="text")  # pyright: ignore[reportArgumentType]
    assert told.fingerprint != WindTunnelTasks(**COMMON).fingerprint  # pyright: ignore[reportArgumentType]
