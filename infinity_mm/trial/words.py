"""Reasons in plain words: what a person who has read nothing yet understands."""

from __future__ import annotations

STAGES = {
    "read": "Reading",
    "unique": "Same picture twice",
    "tag": "Tagging",
    "plan": "Planning",
    "ask": "Writing the question",
    "distinct": "Comparing questions",
    "check": "Checking the question",
    "critic": "Criticising the question",
    "styles": "Choosing styles",
    "answer": "Answering",
    "blind": "Asking without the picture",
    "loss": "Reading with a second model",
    "judge": "Judging",
    "decide": "Cut-off",
    "rewrite": "Repairing the answer",
    "merge": "Joining",
    "cap": "Answered without the picture",
    "dedup": "Repeated conversation",
    "repeats": "Asked of too many pictures",
    "publish": "Writing the data",
}
"""Stage -> what happens there."""

REASONS = {
    # files
    "empty_file": "the file is empty",
    "not_an_image": "not an image in a format that is read",
    "too_many_pixels": "too many pixels to be decoded safely",
    "too_small": "too small to ask about",
    "extreme_aspect": "far too long and narrow",
    "truncated": "the file is cut short",
    "undecodable": "the file is damaged",
    "missing_image": "the file is not there any more",
    "unreadable_file": "the file may not be read",
    "unreadable_folder": "the folder may not be read",
    "file_too_large": "the file is too large",
    "is_a_folder": "a folder with an image's name; what is in it was listed",
    "hidden_file": "hidden file",
    "hidden_folder": "hidden folder, not walked",
    "symlink_leaves_root": "a link to somewhere outside the folder",
    "symlinked_folder": "a link to a folder",
    "broken_symlink": "a link to nothing",
    "symlink_loop": "a link that goes round in circles",
    "not_a_regular_file": "no regular file (a pipe or a device)",
    "name_not_utf8": "a file name that is no UTF-8",
    # questions
    "nothing_to_ask": "the teacher found nothing of this kind to ask about",
    "several_lines": "the reply was more than one line, so it is not clear what the question is",
    "no_question_in_reply": "the reply is not a question",
    "copied_example": "it repeats an example from the prompt",
    "duplicate_question": "it asks what another question about this picture asks",
    "not_answerable": "the teacher, asked again, says the picture does not answer it",
    "unreadable_check": "the reply was neither yes nor no",
    "no_suitable_type": "no kind of question suits the picture",
    "no_suitable_style": "no style of answer suits this kind of question",
    "no_type_planned": "no question was planned for the picture",
    "no_tags": "nothing was recognised in it",
    # answers
    "loss_high": "a second model finds the answer too unlikely",
    "blind_answerable": "the answer was found without the picture",
    "critic_fault": "a critic found a fault in the question",
    "critic_not_answerable": "a critic says the picture does not answer it",
    "critic_off_type": "not the kind of question that was to be asked",
    "critic_answers_itself": "the question gives its answer away",
    "critic_overloaded": "too many conditions in one question",
    "critic_asks_too_much": "several tasks in one question",
    "critic_other_language": "in another language than was asked for",
    "question_repeated": "the same question is asked of many pictures already",
    "answer_is_no_option": "the answer is too long, or yes or no, for multiple choice",
    "options_not_distinct": "too few wrong options that differ from the answer and each other",
    "rewrite_not_an_option": "repaired into an answer that is none of the options",
    "blind_over_cap": "answered without the picture, and its kind has enough of those",
    "empty_reply": "the reply was empty",
    "cut_off": "the reply was longer than its budget and was cut off",
    "refusal": "the model declined",
    "too_short": "too short",
    "too_long": "too long",
    "loop": "the reply repeats itself without end",
    "wrong_language": "the reply is in another language than the prompts",
    "score_low": "the score is below the cut-off",
    "no_score": "there is no score",
    "unreadable_score": "the judge's reply holds no score",
    "unreadable_json": "the reply was not in the form that was asked for, nor was the second one",
    "not_a_choice": "the reply was none of the words that were asked for",
    "rewrite_score_low": "repaired, but the new answer still scores below the cut-off",
    "rewrite_not_better": "repaired, but not scored better than before",
    "rewrite_unchanged": "scored between the cut-offs, and the teacher left it as it was",
    "rewrite_talks_about_the_task": "the repaired answer talks about the repair",
    "rewrite_changed_format": "the repair changed the answer's form",
    "rewrite_changed_language": "the repair changed the language",
    "rewrite_too_long": "the repaired answer is much longer than the first one",
    "rewrite_not_an_edit": "the repaired answer is a new text, no edit of the first one",
    "duplicate_pair": "the same question and answer are there already",
    "asked_in_source": "the conversation that came with the picture asks the same",
    "invalid_unicode": "the reply holds broken characters",
    # calls
    "timeout": "the server did not answer in time",
    "connection": "the connection to the server was lost",
    "endpoint_down": "no server could be reached",
    "simulated": "made up in a simulated run, which publishes nothing",
    "bad_reply": "the server's answer could not be read",
    "bad_image": "the picture could not be sent",
    "content_filter": "the server withheld its reply",
    "http_429": "the server said: too many calls",
}
"""Reason -> words."""


def in_words(reason: str) -> str:
    """A reason for people; one that is not in the list is shown as it is, with spaces."""
    if reason in REASONS:
        return REASONS[reason]
    if reason.startswith("http_"):
        return f"the server answered with an error, HTTP {reason.removeprefix('http_')}"
    return reason.replace("_", " ")
