"""Duplicates among short questions: right for four words, where MinHash over word windows is not.

    text --normalise--> words --fold--> key (content words in order) --same key?--> Jaccard over character triples

Two questions are near duplicates only if every word that carries meaning (names, numbers, negations, prepositions,
question words) is the same and in the same order; the rest ("the", "is", "in the image") may differ a little.
So "How many dogs?" and "How many cats?" stay two questions, and comparing is a dictionary lookup.
"""

from __future__ import annotations

import re
import unicodedata
from typing import final

_PUNCTUATION = re.compile(r"[^\w\s%$€£°+\-/.,']|[.,/\-](?!\d)|_")
_IN_THE_IMAGE = re.compile(
    r"\b(?:(?:shown|seen|visible|depicted|displayed|present|pictured) )?(?:in|from|of|on|within) (?:this|the) "
    r"(?:image|picture|photo|photograph|scene|figure)\b"
)
_IN_THE_IMAGE_CJK = re.compile(r"^请问?|(?:在?[这此该]?[张幅]?(?:图像|图片|照片|画面|图)[中里内上]?的?)")
_CONTRACTIONS = {
    "can't": "can not",
    "won't": "will not",
    "what's": "what is",
    "who's": "who is",
    "where's": "where is",
}
_ARTICLES = ("a", "an", "the", "this", "that", "these", "those", "there", "it", "its")
_VERBS = ("is", "are", "was", "were", "be", "been", "being", "do", "does", "did")
_EMPTY_WORDS = frozenset((*_ARTICLES, *_VERBS, "of", "please", "image"))
_NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_OUR = ("col", "fav", "flav", "harb", "neighb", "hon", "lab", "behavi", "hum", "od", "arm", "vap", "rum")
_SAME_WORD = {
    "grey": "gray",
    "centre": "center",
    "metre": "meter",
    "theatre": "theater",
    "tyre": "tire",
    "which": "what",
    "photo": "image",
    "photograph": "image",
    "picture": "image",
    **{f"{stem}our": f"{stem}or" for stem in _OUR},
    **{word: str(number) for number, word in enumerate(_NUMBERS)},
}
_PLURAL_AS_SINGULAR = re.compile(r"(?<=[a-z]{2}[a-rt-z])s$")
_SHINGLE = 3


def normalise(text: str) -> str:
    """Lower case, compatibility forms unified, punctuation that is no part of a number removed, spaces single."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    return " ".join(_PUNCTUATION.sub(" ", folded).replace("'", "'").split())


def meaning(text: str) -> tuple[str, ...]:
    """The words that carry meaning, in order, each in one spelling and in the singular."""
    plain = " ".join(_expand(word) for word in _said(normalise(text)).split())
    words = [word for word in _IN_THE_IMAGE.sub(" ", plain).split() if word not in _EMPTY_WORDS]
    return tuple(folded for word in words if (folded := _fold(word)) not in _EMPTY_WORDS)


def jaccard(left: str, right: str) -> float:
    """Overlap of the two texts' sets of character triples, 0 to 1."""
    a, b = _shingles(left), _shingles(right)
    return len(a & b) / len(a | b) if a | b else 1.0


def same_question(left: str, right: str, *, min_overlap: float = 0.4) -> bool:
    """Whether two questions ask for the same thing in (nearly) the same words."""
    a, b = normalise(left), normalise(right)
    if a == b:
        return True
    key = meaning(left)
    return bool(key) and key == meaning(right) and jaccard(_spelled(a), _spelled(b)) >= min_overlap


@final
class QuestionIndex:
    """Finds the earlier duplicate of a question; only questions with the same meaning words are compared."""

    def __init__(self, *, min_overlap: float = 0.4) -> None:
        self._min_overlap = min_overlap
        self._buckets: dict[tuple[str, ...], list[tuple[str, str]]] = {}

    def add(self, id_: str, question: str) -> str | None:
        """The id of an earlier duplicate; if there is none, remember this question and return None."""
        bucket = self._buckets.setdefault(meaning(question) or ("", normalise(question)), [])
        for earlier_id, earlier in bucket:
            if same_question(earlier, question, min_overlap=self._min_overlap):
                return earlier_id
        bucket.append((id_, question))
        return None


def _expand(word: str) -> str:
    """Contractions written out, possessives cut: a negation must not hide in an apostrophe."""
    if word in _CONTRACTIONS:
        return _CONTRACTIONS[word]
    if word.endswith("n't"):
        return f"{word[:-3]} not"
    return word.removesuffix("'s").strip("'")


def _fold(word: str) -> str:
    known = _SAME_WORD.get(word)
    if known is None:
        singular = _PLURAL_AS_SINGULAR.sub("", word)
        known = _SAME_WORD.get(singular, singular)
    return known


def _spelled(normal: str) -> str:
    """Normalised text with each word in one spelling, so that `colour` costs no overlap."""
    return " ".join(_fold(part) for word in _said(normal).split() for part in _expand(word).split())


def _said(normal: str) -> str:
    """Without "in this picture" in Chinese, which has no word ends: what is left is compared as one word."""
    return normal if normal.isascii() else _IN_THE_IMAGE_CJK.sub("", normal)


def _shingles(text: str) -> set[str]:
    padded = f" {text} "
    return {padded[i : i + _SHINGLE] for i in range(max(1, len(padded) - _SHINGLE + 1))}
