"""Whether two answers to one question say the same: short ones by their words, long ones by what they conclude.

"red"  "The sign is red."   "3"  "共有3只狗。"   "是"  "是的，图中有一只狗。"
   \\--meaning, Chinese character by character--> the words of one together in the other, not after a "not"
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from infinity_mm.dedup.text import meaning, normalise

_MARK = re.compile(r"(?<!\w)(?:answer|答案)\s*(?:[:\uff1a]|is\b|[是为])", re.IGNORECASE)
_YES = frozenset(("是", "是的", "对", "对的", "有", "有的", "能", "会", "可以", "正确"))
_NO = frozenset(("不", "不是", "不对", "否", "没", "没有", "无", "不能", "不会", "不可以", "错误"))
_BEGINS_YES = re.compile(r"是的|(?:是|对|能|会|有)(?!\w)|对的|有(?!没)|可以|正确")
_BEGINS_NO = re.compile(r"[不否没]|无(?!\w)|错误")
_MAX_WORDS, _MAX_CHARACTERS = 12, 24
"""A longer text that names no conclusion mentions many things; it would agree with each of them."""
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_IS_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_PARTICLES = frozenset("的了呢吗啊吧地着")
_NUMERAL = re.compile(r"[零一二两三四五六七八九十]+")
_DIGITS = {char: number for number, char in enumerate("零一二三四五六七八九")} | {"两": 2}
_NOT = frozenset(("not", "no", "never", "without", "不", "没", "非", "无"))
_BEFORE_A_THING = frozenset("是有为叫只个条位张名头匹种辆棵朵件本座块把")


def agrees(short: str, answer: str) -> bool:
    """Whether an answer of any length says what a word or phrase says.

    The last `Answer:` of a text is followed by what it concludes. A conclusion agrees if it has the same words that
    carry meaning; one of a sentence or two also if it has them together, in order and not denied. Yes and no count as
    its first word alone.
    """
    said, concluded = _conclusion(short), _conclusion(answer)
    if said == concluded:
        return bool(said)
    if (is_yes := _is_yes(said)) is not None:
        begins = _BEGINS_YES if is_yes else _BEGINS_NO
        return meaning(concluded)[:1] == ("yes" if is_yes else "no",) or begins.match(concluded) is not None
    left, right = _words(said), _words(concluded)
    if not left or not right:
        return False
    return left == right or (_is_brief(right) and any(_stands_at(left, right, i) for i in range(len(right))))


def is_yes_or_no(text: str) -> bool:
    """Whether the answer is no more than yes or no."""
    return _is_yes(normalise(text)) is not None


def _is_yes(normal: str) -> bool | None:
    words = meaning(normal)
    if normal in _YES or words == ("yes",):
        return True
    return False if normal in _NO or words == ("no",) else None


def _conclusion(text: str) -> str:
    return normalise(_MARK.split(text)[-1])


def _words(text: str) -> tuple[str, ...]:
    """Words that carry meaning; of Chinese its characters, without particles, numerals as digits."""
    words = meaning(_NUMERAL.sub(_number, text))
    return tuple(part for word in words for part in _CJK.findall(word) if part not in _PARTICLES)


def _number(numeral: re.Match[str]) -> str:
    tens, ten, units = numeral[0].rpartition("十")
    if len(tens) > 1 or len(units) > 1:
        return numeral[0]
    value = _DIGITS[units] if units else 0
    return str(value + 10 * (_DIGITS.get(tens, 1) if ten else 0))


def _is_brief(words: Sequence[str]) -> bool:
    return len(words) <= (_MAX_CHARACTERS if any(_IS_CJK.match(word) for word in words) else _MAX_WORDS)


def _stands_at(left: Sequence[str], right: Sequence[str], start: int) -> bool:
    """Whether `left` is in `right` from there on, and neither denied nor, as a single character, part of a word."""
    end = start + len(left)
    if tuple(right[start:end]) != tuple(left):
        return False
    before = right[start - 1] if start else ""
    if before in _NOT or (start > 1 and before in ("是", "有") and right[start - 2] in _NOT):
        return False
    is_one_character = len(left) == 1 and _IS_CJK.match(left[0])
    return not is_one_character or not before or before.isdigit() or before in _BEFORE_A_THING
