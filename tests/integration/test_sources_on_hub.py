"""Images of a data set on a Hub, read over `hf://` from a Hub on this machine."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.config import conf
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "loopback"))

from loopback_hub import Blob, LoopbackHub, Repo  # noqa: E402 # pyright: ignore[reportMissingImports]

from infinity_mm.sources.config import SourceConfig, open_source  # noqa: E402

pytestmark = pytest.mark.integration


def test_a_data_set_is_listed_and_read_over_hf(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, table = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    pq.write_table(
        pa.table({"image": [{"bytes": buffer.getvalue(), "path": "a.png"}], "text": ["A wall."]}), table
    )
    with LoopbackHub() as hub:
        repo = hub.repos["datasets/someone/walls"] = Repo(private=False)
        repo.commit(
            "main",
            {"data/train-0.parquet": Blob(table.getvalue(), lfs=True), "README.md": Blob(b"x", lfs=False)},
        )
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.url, "token": False})
        path = "hf://datasets/someone/walls"
        source = open_source(SourceConfig(kind="parquet", path=path, caption_column="text"))
        (item,) = source.items()
        content = source.read(item)
        assert item.key == "data/train-0.parquet/000000000"
        assert content.pictures[0].data == buffer.getvalue()
        assert content.turns[-1].text == "A wall."
