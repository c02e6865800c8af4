"""The kinds of questions of the drawn world, a file or several for each family of images."""

from typing import Any, Final

from infinity_mm.windtunnel.kinds.all_things import ALL_THINGS_KINDS
from infinity_mm.windtunnel.kinds.any_image import IMAGE_KIND
from infinity_mm.windtunnel.kinds.base import Kind
from infinity_mm.windtunnel.kinds.chart import CHART_KINDS
from infinity_mm.windtunnel.kinds.document import DOCUMENT_KINDS
from infinity_mm.windtunnel.kinds.one_thing import ONE_THING_KINDS
from infinity_mm.windtunnel.kinds.table import TABLE_KINDS
from infinity_mm.windtunnel.kinds.two_things import TWO_THINGS_KINDS

KINDS: Final[dict[str, Kind[Any]]] = {
    kind.type: kind
    for kind in (
        IMAGE_KIND,
        *ONE_THING_KINDS,
        *ALL_THINGS_KINDS,
        *TWO_THINGS_KINDS,
        *CHART_KINDS,
        *TABLE_KINDS,
        *DOCUMENT_KINDS,
    )
}
"""Every kind of question by its instruction type."""
