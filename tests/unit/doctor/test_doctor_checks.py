from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from rich.console import Console

from infinity_mm.doctor import machine, services, software
from infinity_mm.doctor.checks import CHECKS, print_findings
from infinity_mm.doctor.finding import Asked, Check, Finding, ok, problem, run_checks, warning

NOTHING = Asked()


def levels(check: Check, asked: Asked = NOTHING) -> dict[str, str]:
    return {finding.check: finding.level for finding in check(asked)}


def only(check: Check, asked: Asked = NOTHING) -> Finding:
    (finding,) = check(asked)
    return finding


def test_a_check_that_raises_is_a_problem_and_the_others_go_on() -> None:
    def broken(asked: Asked) -> Iterator[Finding]:
        yield ok("first", "seen")
        raise RuntimeError("boom")

    found = run_checks(NOTHING, [broken, lambda asked: [ok("second", "seen")]])
    assert [(finding.check, finding.level) for finding in found] == [
        ("first", "ok"),
        ("broken", "problem"),
        ("second", "ok"),
    ]
    assert "RuntimeError: boom" in found[1].text


def test_every_finding_that_is_not_ok_has_a_fix() -> None:
    quick = [check for check in CHECKS if check not in (services.ray_starts, services.hub)]
    found = run_checks(Asked(endpoint="http://127.0.0.1:9/v1"), quick)
    assert [finding for finding in found if finding.level != "ok" and not finding.fix] == []
    assert not any("check itself failed" in finding.text for finding in found)


def test_versions_are_compared_with_what_the_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    have: dict[str, str | None] = {
        "transformers": "4.57.0",
        "torch": None,
        "ray": None,
        "accelerate": "1.15.0+local",
    }
    monkeypatch.setattr(software, "version_of", lambda name: have.get(name, "999.0"))
    found = {finding.check: finding for finding in software.packages(NOTHING)}
    assert found["transformers"].level == "problem"
    assert found["transformers"].fix.startswith("pip install 'transformers")
    assert found["torch"].level == "problem"
    assert (found["ray"].level, found["ray"].fix) == ("warning", "pip install 'infinity-mm[synth]'")
    assert found["accelerate"].level == "ok"
    assert "pytest" not in found


@pytest.mark.parametrize(
    ("torch_version", "vision", "expected"),
    [("2.13.0+cpu", "0.28.0", {}), ("2.13.0", "0.29.2", {"torchvision": "warning"}), ("2.13.0", None, {})],
)
def test_torch_and_torchvision_are_a_pair(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, vision: str | None, expected: dict[str, str]
) -> None:
    monkeypatch.setattr(software, "version_of", {"torch": torch_version, "torchvision": vision}.get)
    assert levels(software.torch_pair) == expected


@pytest.mark.parametrize(
    ("rows", "built", "level", "said"),
    [
        (["H100, 570.1, 80 GiB"], None, "problem", "without CUDA"),
        (["H100, 470.1, 80 GiB"], "13.0", "problem", "CUDA 13.0"),
        ([], None, "warning", "on the CPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, rows: list[str], built: str | None, level: str, said: str
) -> None:
    monkeypatch.setattr(software, "nvidia_smi", lambda: rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    finding = only(software.gpu)
    assert finding.level == level
    assert said in finding.text


@pytest.mark.parametrize(
    ("environment", "has_file", "level"),
    [
        ({}, False, "ok"),
        ({}, True, "warning"),
        ({"RAY_AUTH_MODE": "token"}, False, "problem"),
        ({"RAY_AUTH_MODE": "token"}, True, "ok"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, False, "ok"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "ok"),
        ({"RAY_AUTH_TOKEN": "secret"}, False, "warning"),
    ],
)
def test_the_ray_token_and_its_mode_go_together(
    tmp_path: Path, environment: dict[str, str], has_file: bool, level: str
) -> None:
    if has_file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    (finding,) = services.token_findings(environment, tmp_path)
    assert finding.level == level
    assert "secret" not in finding.text + finding.fix


@pytest.mark.parametrize("address", ["", "host:port", "127.0.0.1:9"])
def test_a_ray_address_where_nothing_listens_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    finding = only(services.ray_starts)
    assert finding.level == "problem"
    assert "unset RAY_ADDRESS" in finding.fix


def test_a_run_dir_that_does_not_exist_yet_is_judged_by_the_folder_above_it(tmp_path: Path) -> None:
    finding = only(machine.run_dir, Asked(run_dir=str(tmp_path / "not" / "yet")))
    assert finding.level in ("ok", "warning")
    assert str(tmp_path) in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody may write to")
def test_a_run_dir_that_cannot_be_written_is_a_problem() -> None:
    assert only(machine.run_dir, Asked(run_dir="/proc/runs")).level == "problem"


def test_a_url_is_tried_by_writing_to_it() -> None:
    assert only(machine.run_dir, Asked(run_dir="memory://runs/a")).level == "ok"
    assert only(machine.run_dir, Asked(run_dir="nosuchprotocol://runs/a")).level == "problem"


def test_little_memory_shared_memory_and_few_open_files_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 2**30)
    monkeypatch.setattr(machine, "_LOW_SHM", 2**60)
    monkeypatch.setattr(machine, "_FEW_FILES", 2**40)
    for check in (machine.memory, machine.open_files):
        assert only(check).level == "warning"
    assert set(levels(machine.shared_memory).values()) <= {"warning"}


def test_more_cores_than_the_process_may_use_need_a_thread_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert next(iter(machine.cpu(NOTHING))).fix == "export OMP_NUM_THREADS=2"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert next(iter(machine.cpu(NOTHING))).level == "ok"


def test_without_a_token_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "whoami", lambda **_: pytest.fail("the Hub was asked"))
    assert only(services.hub).level == "ok"


def test_a_token_is_checked_and_never_shown_and_being_offline_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(huggingface_hub, "whoami", lambda **_: {"name": "ann"})
    assert only(services.hub) == ok("hub", "logged in as ann")

    def offline(**_: Any) -> None:
        raise ConnectionError("no route with hf_secret")

    monkeypatch.setattr(huggingface_hub, "whoami", offline)
    finding = only(services.hub)
    assert finding.level == "warning"
    assert "hf_secret" not in finding.text + finding.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(services.hub).level == "warning"


def test_an_engine_that_does_not_answer_is_a_problem_with_a_way_to_start_one() -> None:
    finding = only(services.engine, Asked(endpoint="http://127.0.0.1:9/v1"))
    assert finding.level == "problem"
    assert "vllm serve" in finding.fix
    assert list(services.engine(NOTHING)) == []


def test_the_table_shows_marks_texts_and_fixes_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    found = [ok("a", "[bold]x"), warning("b", "y", "do [this]"), problem("c", "z", "do that")]
    print_findings(found, Console(width=80))
    printed = capsys.readouterr().out
    assert "[bold]x" in printed
    assert "fix: do [this]" in printed
    assert printed.strip().endswith("1 problems, 1 warnings, 1 ok")
