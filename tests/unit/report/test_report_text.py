"""Texts of strangers made fit for a page."""

import json

from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.report.text import clean, clip, json_block, script_of, word_diff


def test_characters_that_hide_or_turn_others_are_written_out() -> None:
    assert clean("a\u202eb\u2028c\x00\x1b[1m\ud800") == "a⟨U+202E⟩b⟨U+2028⟩c⟨U+0000⟩⟨U+001B⟩[1m⟨U+D800⟩"
    assert clean("tab\tline\n\u05e9\u05dc\u200f 👩\u200d🔧") == "tab\tline\n\u05e9\u05dc\u200f 👩\u200d🔧"


def test_a_cut_says_how_much_there_was() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("x" * 1_048_576, 3) == "xxx … [1,048,576 characters, the first 3 are shown]"


def test_a_difference_names_words_and_leaves_the_rest() -> None:
    assert word_diff("It is red.", "It is dark blue.") == [
        ["=", "It is "],
        ["-", "red"],
        ["+", "dark blue"],
        ["=", "."],
    ]
    assert word_diff("一隻狗", "一隻貓") == [["=", "一隻"], ["-", "狗"], ["+", "貓"]]


def test_texts_too_long_to_compare_are_shown_whole() -> None:
    old, new = "a " * 500, "b " * 500
    assert word_diff(old, new) == [["-", old], ["+", new]]


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_difference_holds_both_texts(old: str, new: str) -> None:
    steps = word_diff(old, new)
    assert "".join(text for kind, text in steps if kind != "+") == old
    assert "".join(text for kind, text in steps if kind != "-") == new


def test_the_script_of_most_letters_names_a_text() -> None:
    texts = {
        "Two dogs.": "Latin",
        "Été à Zürich": "Latin",
        "12 + 7": "no letters",
        "一隻狗 Dog": "Chinese",
        "犬と橋が写っています": "Japanese",
        "개 두 마리": "Korean",
        "שלום": "Hebrew",
        "\u0441\u043e\u0431\u0430\u043a\u0430": "Cyrillic",
        "ⴰⵣⵓⵍ": "other",
    }
    assert {text: script_of(text) for text in texts} == texts


@given(st.text())
def test_embedded_data_ends_no_element_and_reads_back(text: str) -> None:
    block = json_block({"t": clean(text)})
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == {"t": clean(text)}
