"""Likelihoods of given texts, from every engine, through batching and journal."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import Echo, ask, said
from nano import Drawn, save_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from infinity_mm.engines.any_model import AnyModel
from infinity_mm.engines.base import Failure, Likelihood, Reply, Scoring
from infinity_mm.engines.batching import MicroBatched
from infinity_mm.engines.journaled import Journaled
from infinity_mm.engines.own_model import OwnModel
from infinity_mm.engines.prompting import Refused
from infinity_mm.engines.replay import Replay, ReplaySpec
from infinity_mm.engines.transformers import TransformersSpec
from infinity_mm.errors import UserError
from infinity_mm.record import ImageRef, ImageSlot, Region, Text, Turn
from infinity_mm.storage.journal import Journal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    return model, AutoProcessor.from_pretrained(folder)


def saw(images: Sequence[ImageRef], question: str, answer: str) -> Scoring:
    slots = tuple(ImageSlot(i) for i in range(len(images)))
    turns = (Turn("user", (*slots, Text(question))), Turn("assistant", (Text(answer),)))
    return Scoring(turns=turns, images=tuple(images))


def mixed(images: Drawn) -> list[Scoring]:
    """One image asked several things, two images at once, none at all, short and long answers."""
    a, b = images.image(0), images.image(1, (150, 20))
    return [
        saw([a], "what color", "red"),
        saw([a], "what color", "a blue square left of a red circle"),
        saw([a], "how many circles are there", "1 2 3"),
        saw([b], "what color", "red"),
        saw([a, b], "two", "yes"),
        saw([], "no image", "a circle"),
    ]


def by_hand(model: Any, processor: Any, scoring: Scoring, images: Drawn) -> tuple[float, int]:
    """One forward over the whole conversation, its text tokenised apart, without any cache."""
    prompts = OwnModel(model, processor, images, cache_bytes=0)
    prompt = prompts.prepare_scoring(scoring)
    answer = processor.tokenizer(scoring.turns[-1].text, add_special_tokens=False).input_ids
    features = prompts._features(prompt.pictures) or None
    logits = model.model(input_ids=torch.tensor([[*prompt.ids, *answer]]), image_features=features)
    logprobs = model.lm_head(logits.last_hidden_state)[0].float().log_softmax(-1)
    total = sum(float(logprobs[len(prompt.ids) - 1 + i, id_]) for i, id_ in enumerate(answer))
    return total / len(answer), len(answer)


def test_both_backends_give_the_mean_over_the_answers_tokens_with_the_prompt_masked(
    loaded: tuple[Any, Any],
) -> None:
    images = Drawn()
    scorings = mixed(images)
    own, any_ = OwnModel(*loaded, images, cache_bytes=1 << 20), AnyModel(*loaded, images, cache_bytes=0)
    with torch.inference_mode():
        ours = own.score([own.prepare_scoring(s) for s in scorings])
        theirs = any_.score([any_.prepare_scoring(s) for s in scorings])
        for scoring, one, other in zip(scorings, ours, theirs, strict=True):
            mean, num_tokens = by_hand(*loaded, scoring, images)
            assert one.mean_logprob == pytest.approx(mean, abs=1e-4)
            assert other.mean_logprob == pytest.approx(mean, abs=1e-4)
            assert one.num_tokens == other.num_tokens == num_tokens
            assert one.prompt_tokens == other.prompt_tokens > 0
    assert len({round(each.mean_logprob, 3) for each in ours}) == len(ours)


def score(spec: TransformersSpec, images: Drawn, scorings: Sequence[Scoring]) -> list[Likelihood | Failure]:
    async def run() -> list[Likelihood | Failure]:
        async with spec.open(images) as engine:
            assert engine.capabilities.likelihood
            return await engine.score(scorings)

    return asyncio.run(run())


def test_all_answers_of_an_image_share_its_reading_and_a_bad_one_fails_alone(folder: Path) -> None:
    images = Drawn()
    image, missing = images.image(0), ImageRef(sha256="0" * 64, uri="gone", width=1, height=1)
    scorings = [
        saw([image], "what color", "red"),
        saw([missing], "what color", "red"),
        saw([image], "what color", " "),
        saw([image], "how many", "2"),
        saw([image], "how many", "circle " * 400),
    ]
    spec = TransformersSpec(model=str(folder), threads=1, max_wait_s=0.0)
    answers = score(spec, images, scorings)
    reasons = [answer.reason if isinstance(answer, Failure) else "" for answer in answers]
    assert reasons == ["", "bad_image", "nothing_to_score", "", "too_long"]
    assert images.num_reads == 2  # the one that is there, and the one that is not
    alone = score(spec, images, scorings[3:4])
    assert isinstance(answers[3], Likelihood)
    assert isinstance(alone[0], Likelihood)
    assert answers[3].mean_logprob == pytest.approx(alone[0].mean_logprob, abs=1e-5)


def test_a_text_with_a_control_mark_is_refused(loaded: tuple[Any, Any]) -> None:
    any_ = AnyModel(*loaded, Drawn(), cache_bytes=0)
    with torch.inference_mode(), pytest.raises(Refused, match="special_token"):
        any_.prepare_scoring(said("yes<|im_end|>"))


def test_a_scoring_ends_in_an_assistant_turn_of_text() -> None:
    user = Turn("user", (Text("what"),))
    for turns in ((), (user,), (user, Turn("assistant", (ImageSlot(0),)))):
        with pytest.raises(ValueError, match="assistant turn of text"):
            Scoring(turns=turns)


def test_a_box_in_the_scored_turn_is_scored_as_it_is_written(loaded: tuple[Any, Any]) -> None:
    own = OwnModel(*loaded, Drawn(), cache_bytes=0)
    boxed = Scoring(turns=(Turn("user", (Text("where"),)), Turn("assistant", (Region(0, (0.5, 0.25)),))))
    assert (
        own.prepare_scoring(boxed).choices == own.prepare_scoring(said("[500, 250]", asked="where")).choices
    )


def test_the_key_of_a_scoring_tells_texts_apart_and_is_never_that_of_a_request() -> None:
    keys = {said(text, asked=asked).key("m") for text in ("a", "b") for asked in ("a", "b")}
    assert len(keys | {ask("a").key("m"), said("a").key("n")}) == 6


def test_batches_hold_replies_and_likelihoods_and_every_caller_gets_its_own() -> None:
    echo = Echo()

    async def run() -> tuple[list[Reply | Failure], list[Likelihood | Failure], list[Reply | Failure]]:
        async with MicroBatched(echo, max_batch=8, max_wait_s=0.05) as engine:
            return await asyncio.gather(
                engine.generate([ask("a")]),
                engine.score([said("one"), said("bad"), said("two words")]),
                engine.generate([ask("b")]),
            )

    first, scored, second = asyncio.run(run())
    assert (first, second) == ([Reply(text="a!")], [Reply(text="b!")])
    assert scored == [
        Likelihood(mean_logprob=-3, num_tokens=1, prompt_tokens=1),
        Failure(reason="bad_text", detail="bad"),
        Likelihood(mean_logprob=-9, num_tokens=2, prompt_tokens=1),
    ]
    assert [sorted(batch) for batch in echo.batches] == [["a", "b"], ["bad", "one", "two words"]]


def test_likelihoods_are_journaled_and_replayed_like_replies(tmp_path: Path) -> None:
    echo, texts = Echo(), [said("red"), said("bad"), said("red")]
    first = asyncio.run(Journaled(echo, Journal(str(tmp_path), "w0")).score(texts))
    assert [getattr(each, "from_journal", None) for each in first] == [False, None, True]
    again = asyncio.run(Journaled(echo, Journal(str(tmp_path), "w1")).score(texts[:1]))
    assert again == [Likelihood(mean_logprob=-3, num_tokens=1, prompt_tokens=1, from_journal=True)]
    assert echo.batches == [["red", "bad"]]

    async def replay() -> list[Likelihood | Failure]:
        async with ReplaySpec(journal=str(tmp_path), fingerprint="echo").open(Drawn()) as engine:
            assert isinstance(engine, Replay)
            return await engine.score(texts)

    assert asyncio.run(replay()) == [again[0], Failure(reason="bad_text", detail="bad"), again[0]]
    with pytest.raises(UserError, match="scored"):
        asyncio.run(Journaled(echo, Journal(str(tmp_path), "w2"), mode="replay").score([said("blue")]))
