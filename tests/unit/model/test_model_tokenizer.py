"""The trained tokenizer: any text round-trips, digits stand alone, the template marks what is trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_vlm import tokenizer

from infinity_mm.model.tokenizer import build_tokenizer


@given(text=st.text(max_size=60))
def test_any_text_round_trips(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer().decode(ids) == text


@pytest.mark.parametrize(
    "text", ["  two  spaces ", "tab\tand\nnewline\n", "日本語 and emoji 🙂", "don't", "a , b ."]
)
def test_awkward_text_round_trips(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text, add_special_tokens=False)) == text


def test_every_digit_is_a_token_of_its_own() -> None:
    pieces = tokenizer().tokenize("120 12012")
    assert [piece for piece in pieces if piece.isdigit()] == ["1", "2", "0", "1", "2", "0", "1", "2"]


def test_special_tokens_have_their_roles() -> None:
    assert tokenizer().eos_token == "<|im_end|>"
    assert tokenizer().pad_token == "<|pad|>"
    assert len(tokenizer().encode("<|image_start|><|image|><|slice|><|row|><|image_end|><|endoftext|>")) == 6


def test_the_same_texts_give_the_same_vocabulary() -> None:
    texts = ["the cat sat on the mat", "the dog sat on the cat"]
    assert build_tokenizer(texts, 300).get_vocab() == build_tokenizer(texts, 300).get_vocab()


def test_chat_template_takes_strings_and_typed_parts() -> None:
    typed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    plain = [{"role": "user", "content": "<|image|>Hi"}]
    expected = "<|im_start|>user\n<|image|>Hi<|im_end|>\n<|im_start|>assistant\n"
    for messages in (typed, plain):
        assert (
            tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
        )


def test_template_marks_the_assistants_words_and_end_marker_for_training() -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    out = tokenizer().apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    trained = [token for token, keep in zip(out["input_ids"], out["assistant_masks"], strict=True) if keep]
    assert tokenizer().decode(trained) == "red<|im_end|>"
