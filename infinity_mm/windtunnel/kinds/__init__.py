"""The kinds of questions of the drawn world, one file for each family of images."""

from typing import Any, Final

from infinity_mm.windtunnel.kinds.any_image import IMAGE_KIND
from infinity_mm.windtunnel.kinds.base import Kind
from infinity_mm.windtunnel.kinds.chart import CHART_KINDS
from infinity_mm.windtunnel.kinds.document import DOCUMENT_KINDS
from infinity_mm.windtunnel.kinds.shapes import SHAPES_KINDS
from infinity_mm.windtunnel.kinds.table import TABLE_KINDS

KINDS: Final[dict[str, Kind[Any]]] = {
    kind.type: kind for kind in (IMAGE_KIND, *SHAPES_KINDS, *CHART_KINDS, *TABLE_KINDS, *DOCUMENT_KINDS)
}
"""Every kind of question by its instruction type."""
