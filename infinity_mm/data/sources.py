"""Readers of training data, by the `kind:` a YAML file names.

    kind, options --build_source--> ConversationSource

Readers index lazily and open files in the process that reads, so they can be sent to workers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from infinity_mm.data.conversation import ConversationSource
from infinity_mm.data.readers.chat import ChatSource
from infinity_mm.data.readers.llava_json import LlavaJsonSource
from infinity_mm.data.readers.parquet import ParquetSource
from infinity_mm.data.readers.tars import TarSource
from infinity_mm.errors import explain


def _windtunnel(**options: Any) -> ConversationSource:
    """Imported only when asked for: other runs need not know the wind tunnel."""
    return importlib.import_module("infinity_mm.windtunnel.tasks").WindTunnelTasks(**options)


SOURCES: dict[str, Callable[..., ConversationSource]] = {
    "parquet": ParquetSource,
    "infinity_mm": TarSource,
    "llava_json": LlavaJsonSource,
    "chat": ChatSource,
    "windtunnel": _windtunnel,
}


def build_source(kind: str, options: Mapping[str, Any]) -> ConversationSource:
    """The source of one entry of the YAML section `data`."""
    if kind not in SOURCES:
        raise explain(
            what=f"unknown data kind `{kind}`",
            where="YAML section `data`",
            fix=f"use one of {', '.join(SOURCES)}",
        )
    try:
        return SOURCES[kind](**options)
    except TypeError as error:
        raise explain(
            what=f"the options of data kind `{kind}` do not fit: {error}",
            where="YAML section `data`, `options`",
            fix="see the fields of the source's class in infinity_mm/data/readers/",
        ) from error
