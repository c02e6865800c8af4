"""`infinity-mm try` against a server that answers like a real VLM, bad moments included."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from html import unescape
from pathlib import Path

import pytest
from photographs import put_photographs
from test_broken_inputs import FILES, KEPT
from vlm_server import VlmServer

from infinity_mm.errors import UserError
from infinity_mm.runtime.events import UnitDone
from infinity_mm.runtime.run import Run
from infinity_mm.trial.collect import collect
from infinity_mm.trial.run import Result, run_trial
from infinity_mm.trial.settings import Settings
from infinity_mm.trial.words import in_words

pytestmark = [
    pytest.mark.integration,
    # Pillow warns about what is wrong with metadata, and reads the pixels all the same.
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
]
BIN = Path(sys.executable).parent


def trial(
    images: Path, server: VlmServer, out: Path, *, said: list[str] | None = None, **more: object
) -> Result:
    settings = {"model": "test/vlm-7b", "questions_per_image": 2} | more
    told: list[str] = [] if said is None else said
    return run_trial(
        Settings(images=(str(images),), endpoint=server.url, out=str(out), **settings),  # type: ignore[arg-type]
        say=told.append,
    )


class Done:
    """One trial on ten pictures, and the same command again."""

    def __init__(self, folder: Path) -> None:
        self.photos = put_photographs(folder / "photos")
        with VlmServer() as server:
            self.result = trial(self.photos, server, folder / "out")
            self.faults, self.calls = server.faults, Counter(server.calls)
            self.again = trial(self.photos, server, folder / "out")
            self.calls_again = server.calls - self.calls
        self.page = Path(self.result.page).read_text(encoding="utf-8")
        self.pictures = collect(Run(self.result.run_dir))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("try"))


def test_every_picture_is_on_the_page_and_every_planned_question_has_an_end_or_answers(done: Done) -> None:
    assert done.result.state == "done"
    assert done.page.count("<article>") == done.page.count("data:image/jpeg;base64,") == 10
    assert all(file.name in done.page for file in done.photos.iterdir())
    questions = [question for picture in done.pictures for question in picture.questions]
    assert len(questions) == done.result.counts["planned"] == 20
    assert all((question.end is None) == bool(question.answers) for question in questions)
    assert all(question.text in unescape(re.sub(r"<[^>]+>", "", done.page)) for question in questions)


def test_the_figures_add_up(done: Done) -> None:
    counts = done.result.counts
    ended = {
        stage: sum(found.values())
        for fates in (counts["dropped"], counts["failed"])
        for stage, found in fates.items()
    }
    assert counts["planned"] - ended.get("ask", 0) == counts["written"]
    assert counts["written"] - ended.get("distinct", 0) == counts["distinct"]
    assert counts["distinct"] - ended.get("check", 0) == counts["answerable"]
    lost = sum(number for stage, number in ended.items() if stage not in ("ask", "distinct", "check"))
    assert counts["answers"] - lost == counts["kept"] > 0
    assert counts["repaired"] > 0


def test_bad_moments_of_the_server_cost_one_answer_each_or_none(done: Done) -> None:
    assert sorted(done.faults) == ["429", "500", "cut_off", "refusal", "think"]
    answering = done.result.counts["dropped"]["answer"]
    assert answering == {"refusal": 1, "cut_off": 1}
    assert done.result.counts["failed"] == {}
    assert "think" not in done.page.replace("think>", "think")
    for reason in ("refusal", "cut_off"):
        assert in_words(reason) in unescape(done.page)


def test_the_same_command_again_asks_nothing_but_whether_the_server_is_there(done: Done) -> None:
    assert dict(done.calls_again) == {"probe": 1}
    assert done.again.counts == done.result.counts


def test_the_next_commands_name_the_pictures_and_the_teacher(done: Done) -> None:
    first, second = done.result.next_commands
    assert first.startswith("infinity-mm init synth.yaml --images ")
    assert str(done.photos) in first
    assert first.endswith("--model test/vlm-7b")
    assert second == "python pipelines/synth.py --config synth.yaml"


def test_two_hundred_broken_files_are_all_accounted_for(tmp_path: Path) -> None:
    for make, name in ((make, name) for name, (make, _) in FILES.items()):
        data = make()
        for folder in "abcd":
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / folder / name).write_bytes(data)
    with VlmServer(faults=False) as server:
        result = trial(
            tmp_path / "photos", server, tmp_path / "out", num_pictures=1000, questions_per_image=1
        )
    assert len(FILES) >= 60
    expected = Counter(reason for _, reason in FILES.values())
    assert result.pictures_read == 4 * expected.pop(KEPT)
    assert result.files_unusable == {reason: 4 * number for reason, number in expected.items()}
    assert (result.files_given, result.files_not_needed) == (4 * len(FILES), 0)
    page = unescape(Path(result.page).read_text(encoding="utf-8"))
    for name, (_, reason) in FILES.items():
        assert page.count(f"/a/{name}") >= 1, name
        assert reason == KEPT or in_words(reason) in page, reason


def test_a_server_that_goes_away_leaves_a_page_and_the_same_command_finishes(tmp_path: Path) -> None:
    photos = put_photographs(tmp_path / "photos")
    with VlmServer(faults=False) as server:

        def fail(event: object) -> None:
            if isinstance(event, UnitDone) and event.pass_name == "journeys":
                server.is_down = True

        settings = Settings(
            images=(str(photos),), endpoint=server.url, model="test/vlm-7b", out=str(tmp_path / "out")
        )
        patient = run_trial(settings, say=lambda text: None, on_event=fail)
        assert patient.state == "failed"
        assert "the same command" in patient.notes[0].lower()
        assert 0 < patient.counts["pictures_worked"] < patient.counts["pictures"] == 10
        assert "Not worked yet" in Path(patient.page).read_text(encoding="utf-8")
        server.is_down = False
        assert run_trial(settings, say=lambda text: None).counts["pictures_worked"] == 10


def test_ctrl_c_leaves_a_page_of_what_is_there_and_the_same_command_goes_on(tmp_path: Path) -> None:
    photos = put_photographs(tmp_path / "photos")
    with VlmServer(faults=False) as server:
        server.is_holding = True  # one picture is under way when Ctrl-C comes, however fast the machine
        command = [BIN / "infinity-mm", "try", str(photos), "--endpoint", server.url]
        command += ["--model", "test/vlm-7b", "--out", str(tmp_path / "out"), "--no-open", "--json"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # In the background of a script SIGINT is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        deadline = time.monotonic() + 120
        entries = tmp_path / "out" / "run" / "manifest" / "journeys"
        while not list(entries.glob("*/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        stopped = json.loads(stdout)
        assert process.returncode == 130, stderr
        assert stopped["state"] == "interrupted"
        worked = stopped["counts"]["pictures_worked"]
        assert worked > 0
        assert "Ctrl-C" in Path(stopped["page"]).read_text(encoding="utf-8")
        server.is_holding = False
        asked = server.calls["ask"]
        finished = trial(photos, server, tmp_path / "out", questions_per_image=3)
    assert finished.counts["pictures_worked"] == 10
    assert server.calls["ask"] - asked <= 30 - 3 * worked


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("VLM-7B", "did you mean --model test/vlm-7b?"),
        ("test/llm-7b", "not a multimodal model"),
        (None, "--model, one of: test/vlm-7b, test/llm-7b"),
    ],
)
def test_a_wrong_model_is_told_before_anything_is_worked(
    tmp_path: Path, model: str | None, said: str
) -> None:
    photos = put_photographs(tmp_path / "photos", number=1)
    with VlmServer() as server, pytest.raises(UserError, match=re.escape(said)):
        trial(photos, server, tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_an_address_without_a_server_is_told_with_a_way_to_start_one(tmp_path: Path) -> None:
    photos = put_photographs(tmp_path / "photos", number=1)
    with pytest.raises(UserError, match=r"no server answers(.|\n)*vllm serve"):
        run_trial(Settings(images=(str(photos),), endpoint="http://127.0.0.1:9", model="m"), say=print)


def test_a_key_comes_from_the_environment_and_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, secret = put_photographs(tmp_path / "photos", number=2), "sk-very-secret-5531"
    said: list[str] = []
    with VlmServer(key=secret) as server:
        with pytest.raises(UserError, match="--api-key-env"):
            trial(photos, server, tmp_path / "out")
        monkeypatch.setenv("MY_KEY", "sk-wrong-key-77")
        with pytest.raises(UserError, match="the key in MY_KEY") as refused:
            trial(photos, server, tmp_path / "out", api_key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", secret)
        result = trial(photos, server, tmp_path / "out", api_key_env="MY_KEY", said=said)
    assert result.state == "done"
    assert "sk-wrong-key-77" not in str(refused.value)
    assert set(server.keys) == {None, "Bearer sk-wrong-key-77", f"Bearer {secret}"}
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(written) > 5
    assert [file for file in written if secret.encode() in file.read_bytes()] == []
    assert not any(secret in line for line in said)


def test_nano_teacher_works_through_photographs_and_says_that_it_does_not_know_them(tmp_path: Path) -> None:
    photos, said = put_photographs(tmp_path / "photos", number=2), list[str]()
    settings = Settings(images=(str(photos),), questions_per_image=1, out=str(tmp_path / "out"))
    result = run_trial(settings, say=said.append)
    assert (result.state, result.model, result.counts["pictures"]) == ("done", "nano-teacher", 2)
    assert any("drawn shapes" in line for line in said)
    assert "drawn shapes" in Path(result.page).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["state"] == "done"
