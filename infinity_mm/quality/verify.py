"""Is a rewrite an edit of its original? Checks in code, before a judge is paid to look at it.

That it is no refusal, no loop and not cut off is seen to before (`hygiene.py`), as for every reply.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from infinity_mm.errors import explain
from infinity_mm.quality.phrases import main_script, talks_about_the_task

_ANSWER_MARK = re.compile(r"(?:(?<!\w)answer|答案)\s*[:\uff1a]\s*\S", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What may change in a rewrite."""

    max_edit_ratio: float = 0.7
    """Largest share of words that may differ; above it the text is a new one, not an edit."""
    whole_change_words: int = 6
    """Answers up to this many words may change altogether: in "red" there is nothing to leave alone."""
    max_growth: float = 2.0
    """Most times longer than the original, in words (short answers may grow to `whole_change_words`)."""

    def __post_init__(self) -> None:
        if not 0 < self.max_edit_ratio <= 1:
            raise explain(
                what=f"max_edit_ratio={self.max_edit_ratio} is not a share",
                where="VerifyConfig (YAML section `rewrite.verify`)",
                fix="set rewrite.verify.max_edit_ratio above 0 and up to 1, usually 0.5 to 0.8",
            )


def rewrite_fault(old: str, new: str, config: VerifyConfig) -> str | None:
    """The reason why `new` is no acceptable edit of `old`, or None if it is one."""
    if _words(new) == _words(old):
        return "rewrite_unchanged"
    if talks_about_the_task(new) and not talks_about_the_task(old):
        return "rewrite_talks_about_the_task"
    if has_answer_mark(old) != has_answer_mark(new):
        return "rewrite_changed_format"
    if main_script(old) and main_script(new) and main_script(old) != main_script(new):
        return "rewrite_changed_language"
    if len(_words(new)) > max(config.whole_change_words, config.max_growth * len(_words(old))):
        return "rewrite_too_long"
    if len(_words(old)) > config.whole_change_words and edit_ratio(old, new) > config.max_edit_ratio:
        return "rewrite_not_an_edit"
    return None


def edit_ratio(old: str, new: str) -> float:
    """Share of words that differ: 0 for the same words, 1 for none in common."""
    return 1.0 - difflib.SequenceMatcher(None, _words(old), _words(new), autojunk=False).ratio()


def has_answer_mark(text: str) -> bool:
    """Whether the text has the form of an explained answer: `Answer: ...` (`答案:...`) after the explanation."""
    return _ANSWER_MARK.search(text) is not None


def _words(text: str) -> list[str]:
    """Words, with each CJK character a word of its own; case counts, spacing does not."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+", text)
