from __future__ import annotations

import io
import logging
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "loopback"))
from committed_run import make_run  # pyright: ignore[reportMissingImports]

from infinity_mm.errors import UserError
from infinity_mm.publishing import hub
from infinity_mm.publishing.bundle import File, disk_file, listed, made_file, make_bundle
from infinity_mm.publishing.checkpoint_bundle import checkpoint_bundle
from infinity_mm.publishing.dataset_card import dataset_card, hub_licence
from infinity_mm.publishing.facts import Facts
from infinity_mm.publishing.markdown import safe, size, table
from infinity_mm.publishing.model_card import model_card
from infinity_mm.publishing.run_bundle import run_bundle
from infinity_mm.publishing.strip import GAP_PX, SIDE_PX, strip
from infinity_mm.publishing.target import bundle_of


def matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def content(file: File) -> bytes:
    loaded = file.load()
    return loaded if isinstance(loaded, bytes) else loaded.read_bytes()


def test_the_same_files_have_the_same_digest_in_any_order_and_other_bytes_another() -> None:
    one, two = made_file("a", b"1"), made_file("b", b"2")
    first, second = make_bundle("dataset", [one, two]), make_bundle("dataset", [two, one])
    assert first.digest == second.digest
    assert [file.path for file in first.files] == ["a", "b", "infinity_mm.json"]
    assert make_bundle("dataset", [one, made_file("b", b"3")]).digest != first.digest
    assert make_bundle("model", [one, two]).digest != first.digest
    assert hub.branch_of(first) == f"infinity-mm-upload-{first.digest[:12]}"


def test_a_manifest_lists_itself_and_what_is_no_manifest_lists_nothing() -> None:
    bundle = make_bundle("dataset", [made_file("a", b"1")])
    manifest = next(content(file) for file in bundle.files if file.path == "infinity_mm.json")
    assert listed(manifest) == ["infinity_mm.json", "a"]
    for other in (b"", b"[]", b"{}", b'{"files": 3}', b'{"files": ["x"]}'):
        assert listed(other) == []


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ({"a": "CC0-1.0", "b": "cc0-1.0"}, {"license": "cc0-1.0"}),
        ({"a": "CC0-1.0", "b": "MIT"}, {"license": "other", "license_name": "see-the-table-of-licences"}),
        ({"a": "ask the zoo"}, {"license": "other", "license_name": "see-the-table-of-licences"}),
        ({"a": "CC0-1.0", "b": "unknown"}, {"license": "unknown"}),
        ({}, {"license": "unknown"}),
    ],
)
def test_the_hubs_licence_is_the_images_one_if_they_share_it(
    licences: dict[str, str], expected: dict[str, str]
) -> None:
    assert hub_licence(licences) == expected


def test_text_of_unknown_origin_cannot_leave_its_cell() -> None:
    assert safe("a | b\n# c") == r"a \| b \# c"
    assert safe("<script>") == "&lt;script&gt;"
    assert safe("![x](http://y)") == r"\!\[x\](http://y)"
    assert safe("x" * 200, max_chars=5) == "xxxx…"


def test_tables_and_sizes_are_for_people() -> None:
    assert table(["a", "n"], [["x", 1200], ["y", None]]) == [
        "| a | n |",
        "|---|---:|",
        "| x | 1,200 |",
        "| y |  |",
    ]
    assert [size(n) for n in (0, 999, 1500, 2_000_000, 3_100_000_000_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 MB",
        "3.1 TB",
    ]


def test_the_strip_shows_each_picture_whole_and_is_the_same_every_time() -> None:
    def png(width: int, height: int, color: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), color).save(buffer, format="PNG")
        return buffer.getvalue()

    pictures = [png(800, 400, "red"), b"", png(10, 10, "blue")]
    data = strip(pictures)
    assert data == strip(pictures)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (3 * SIDE_PX + 2 * GAP_PX, SIDE_PX)
        red, corner = image.getpixel((SIDE_PX // 2, SIDE_PX // 2)), image.getpixel((SIDE_PX // 2, 4))
    assert isinstance(red, tuple)
    assert isinstance(corner, tuple)
    assert red[0] > 200 > red[1]
    assert min(corner) > 240  # twice as wide as high: white above


def test_the_card_counts_what_is_in_the_files(tmp_path: Path) -> None:
    make_run(str(tmp_path / "squares"))
    bundle = run_bundle(str(tmp_path / "squares"), repo="me/squares")
    paths = [file.path for file in bundle.files]
    assert paths[:2] == ["README.md", "assets/samples.webp"]
    assert paths[2:-1] == [f"data/train-{n:05d}-of-00004.parquet" for n in range(4)]
    card = content(bundle.files[0]).decode()
    assert "7 rows with 7 question-answer pairs about 7 images, in 4 Parquet files" in card
    assert "| decide |  | 7 |  | 1 |  |" in card
    assert r"| decide | low\_score | dropped | 1 |" in card
    assert "| squares | CC-BY-4.0 | 2 |" in card
    assert "| judge | toy@1 | 7 |" in card
    assert "`toy/answer@abc`" in card
    assert r"What \| is &lt;b&gt;number&lt;/b&gt; 0?" in card
    assert "The licence of 2 of 7 images is unknown." in card
    assert str(tmp_path) not in card
    assert matter(card)["license"] == "unknown"
    assert matter(card)["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]


def test_a_run_on_an_object_store_is_the_same_bundle_as_on_a_disk(tmp_path: Path) -> None:
    make_run(str(tmp_path / "squares"))
    make_run("memory://publishing/squares")
    local = run_bundle(str(tmp_path / "squares"), repo="me/squares")
    remote = bundle_of("memory://publishing/squares", repo="me/squares")
    assert remote.digest == local.digest
    assert [content(file) for file in remote.files] == [content(file) for file in local.files]


def test_a_damaged_file_an_unfinished_run_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "squares"
    make_run(str(home))
    shard = next((home / "files" / "publish").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="but other content"):
        run_bundle(str(home), repo="me/x")
    shard.write_bytes(whole)
    (home / "summary.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        run_bundle(str(home), repo="me/x")
    make_run(str(tmp_path / "empty"), num_units=0)
    with pytest.raises(UserError, match="no rows"):
        run_bundle(str(tmp_path / "empty"), repo="me/x")


@pytest.mark.parametrize("repo", ["squares", "me/", "a/b/c", ""])
def test_a_repository_is_named_with_its_owner(repo: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no repository name"):
        bundle_of(str(tmp_path), repo=repo)


def test_a_folder_that_is_neither_run_nor_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run directory"):
        bundle_of(str(tmp_path), repo="me/x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no model"):
        bundle_of(str(tmp_path), repo="me/x")


def test_a_drawn_set_says_how_many_answers_were_right() -> None:
    facts = Facts(rows=1, pairs=1, licences={"a": "MIT"}, calls=Counter({("answer", "x"): 1}))
    summary = {"answer_accuracy_before": 0.448, "answer_accuracy_after": 0.9}
    card = dataset_card(repo="me/x", name="x", facts=facts, data_files=[], summary=summary, run={})
    assert "44.8% of the answers were right before the policy, 90.0% of those it kept" in card
    assert "No model judged the answers." in card
    assert matter(card)["license"] == "mit"


def test_weights_that_nobody_pinned_are_a_limit_of_the_set() -> None:
    calls = Counter({("answer", "openai: m@unpinned, {}"): 1, ("judge", "openai: j@abc, {}"): 1})
    card = dataset_card(repo="me/x", name="x", facts=Facts(calls=calls), data_files=[], summary={}, run={})
    assert "cannot be asked again: openai: m@unpinned" in card
    assert card.count("cannot be asked again") == 1


def test_a_model_card_names_its_base_and_no_folder_of_this_machine() -> None:
    stage = {"config": {"model": {"path": "/home/someone/nano-base"}, "steps": 3, "data": []}}
    card = model_card(
        repo="me/x", config={"model_type": "infinity_mm"}, stages=[stage], evaluations={}, notes="Old."
    )
    assert "from `nano-base`" in card
    assert "/home" not in card
    assert "import infinity_mm" in card
    assert "Nothing was measured" in card
    assert card.rstrip().endswith("Old.")
    stage = {"config": {"model": {"path": "Qwen/Qwen2.5-VL-3B-Instruct"}}}
    card = model_card(repo="me/x", config={}, stages=[stage], evaluations={}, licence="apache-2.0")
    assert matter(card)["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert matter(card)["license"] == "apache-2.0"


def test_what_is_no_part_of_a_model_is_left_out_with_a_reason(tmp_path: Path) -> None:
    for name in (
        "config.json",
        "model.safetensors",
        "run.json",
        "weights.bin",
        ".hidden",
        "notes.md",
        "README.md",
    ):
        (tmp_path / name).write_text("{}" if name.endswith("json") else "---\nlicense: mit\n---\nBy me.")
    bundle = checkpoint_bundle(tmp_path, repo="me/x")
    assert [f.path for f in bundle.files] == [
        "README.md",
        "config.json",
        "infinity_mm.json",
        "model.safetensors",
    ]
    assert {name: why.split(",")[0] for name, why in bundle.left_out.items()} == {
        ".hidden": "hidden",
        "README.md": "goes into the card",
        "notes.md": "files with the ending `.md` are not part of a model",
        "run.json": "goes into the card",
        "weights.bin": "a pickle",
    }
    card = content(bundle.files[0]).decode()
    assert matter(card)["license"] == "mit"
    assert "By me." in card


@pytest.mark.parametrize(("config", "taken"), [('{"auto_map": {}}', True), ("{}", False)])
def test_code_is_taken_where_the_configuration_points_to_it(tmp_path: Path, config: str, taken: bool) -> None:
    (tmp_path / "model_modeling.py").write_text("")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(config)
    bundle = checkpoint_bundle(tmp_path, repo="me/x")
    assert ("model_modeling.py" in [file.path for file in bundle.files]) == taken
    assert ("model_modeling.py" in bundle.left_out) != taken


def test_a_file_that_changed_after_it_was_hashed_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    file = disk_file("model.safetensors", path)
    assert hub._checked(file) == str(path)
    path.write_bytes(b"two")
    with pytest.raises(UserError, match="has changed since"):
        hub._checked(file)


def test_batches_are_closed_by_number_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_COMMIT_FILES", 2)
    monkeypatch.setattr(hub, "MAX_COMMIT_BYTES", 10)
    files_ = [made_file(str(n), b"x" * n) for n in (1, 1, 1, 9, 4, 20)]
    assert [[file.bytes for file in batch] for batch in hub._batches(files_)] == [[1, 1], [1, 9], [4], [20]]


@pytest.mark.parametrize("endpoint", ["http://hub.example.com", "ftp://hub.example.com", "hub"])
def test_a_token_is_not_sent_in_the_clear(endpoint: str) -> None:
    with pytest.raises(UserError, match="in the clear"):
        hub._check_endpoint(endpoint)
    hub._check_endpoint("https://hub.example.com")
    hub._check_endpoint("http://127.0.0.1:8000")


def test_tokens_and_signed_addresses_are_taken_out_of_errors_and_logs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "no-usual-form-of-token")
    text = "PUT https://s3.x/a?X-Amz-Signature=abc&b=1 (https://me:pw@x/y) "
    text += "Bearer abc.def hf_abcdefgh no-usual-form-of-token"
    clean = "PUT https://s3.x/a?... (https://x/y) <token> <token> <token>"
    assert hub._redacted(text) == clean
    with hub._redacted_logs():
        logging.getLogger("some.client").warning("%s", text)
    assert caplog.messages == [clean]
    with pytest.raises(UserError) as caught, hub._told("me/x", None):
        raise RuntimeError(text)
    assert "X-Amz" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
