"""The families of images of the drawn world, one file each."""

from typing import Final

from infinity_mm.windtunnel.families import chart, document, shapes, table
from infinity_mm.windtunnel.families.base import Family

FAMILY_BY_NAME: Final[dict[str, Family]] = {
    "shapes": shapes.FAMILY,
    "chart": chart.FAMILY,
    "table": table.FAMILY,
    "document": document.FAMILY,
}
