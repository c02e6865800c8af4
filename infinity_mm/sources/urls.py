"""A list of links, only with `allow_network`: a text file with one URL a line, or a column of Parquet files.

list --> one item per URL --fetch, several at once--> bytes, kept by the run

What a server sends is read once; a finished pass is not asked again, and the run keeps the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast, final

import pyarrow.parquet as pq

from infinity_mm.errors import explain
from infinity_mm.sources.base import Content, FromTheWorld, Picture, SourceItem
from infinity_mm.sources.fetch import Limits, fetch
from infinity_mm.sources.listing import Files
from infinity_mm.storage import files
from infinity_mm.storage.files import open_fs


@final
@dataclass(frozen=True, kw_only=True)
class UrlSource(FromTheWorld):
    """Images behind http and https links."""

    name: str
    path: str
    """A text file, or Parquet: a file, a folder or a pattern with `*`."""
    url_column: str = "url"
    """Of Parquet."""
    licence: str = "unknown"
    limits: Limits = field(default_factory=Limits)
    threads: int = 16
    """Downloads at once, for each open shard of a worker."""

    def items(self) -> Iterator[SourceItem]:
        """Links in order; the same link twice is two items, and one image in the end."""
        for key, url in self._links():
            good = isinstance(url, str) and bool(url)
            problem = None if good else "no_url"
            yield SourceItem(key=key, source=self.name, uri=url if good else None, problem=problem)

    def read(self, item: SourceItem) -> Content:
        """Download it."""
        assert item.uri is not None
        return Content(pictures=(Picture(data=fetch(item.uri, self.limits)),), licence=self.licence)

    def _links(self) -> Iterator[tuple[str, Any]]:
        if self.path.endswith((".txt", ".lst")):
            try:
                lines = files.read(self.path).decode("utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise explain(
                    what=f"cannot read {self.path}: {error}",
                    where="sources.path (configuration)",
                    fix="give a text file with one URL on each line",
                ) from error
            for number, line in enumerate(lines):
                if line.strip() and not line.startswith("#"):
                    yield f"{number:09d}", line.strip()
            return
        for name, url in Files(self.path, ".parquet").list():
            filesystem, path = open_fs(url)
            with pq.ParquetFile(cast(Any, filesystem.open(path, "rb"))) as parquet:
                if self.url_column not in parquet.schema_arrow.names:
                    raise explain(
                        what=f"there is no column `{self.url_column}`",
                        where=url,
                        fix=f"set url_column to one of {', '.join(parquet.schema_arrow.names)}",
                    )
                row = 0
                for batch in parquet.iter_batches(columns=[self.url_column]):
                    for value in batch.column(0).to_pylist():
                        yield f"{name}/{row:09d}", value
                        row += 1
