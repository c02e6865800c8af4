"""The one question that every image answers: what kind of image it is."""

from typing import Final

from infinity_mm.windtunnel.kinds.base import Args, Finding, Kind
from infinity_mm.windtunnel.scene import (
    Bar,
    ChartFacts,
    DocumentFacts,
    Facts,
    Line,
    Row,
    ShapesFacts,
    TableFacts,
    Thing,
)
from infinity_mm.windtunnel.words import FAMILIES

_SAYS: Final = {
    "shapes": "There are colored shapes on a plain background.",
    "bar chart": "There are bars with labels and numbers.",
    "table": "There are rows and columns.",
    "sign": "There are large words on a colored background.",
    "form": "There are lines with names and values.",
}
_ALIASES: Final = {"shapes": ("colored shapes",), "bar chart": ("chart",)}
_TYPICAL: Final[dict[str, Facts]] = {
    "shapes": ShapesFacts(things=(Thing(shape="circle", color="red", size="large", row=1, column=1),)),
    "bar chart": ChartFacts(bars=(Bar(label="Tea", value=5, color="red"),), title=""),
    "table": TableFacts(headers=("Item", "Qty"), rows=(Row(item="Tea", numbers=(5,)),)),
    "sign": DocumentFacts(kind="sign", background="red", lines=(Line(label="", value="STOP"),)),
    "form": DocumentFacts(kind="form", background="", lines=(Line(label="Day", value="Mon"),)),
}


def image_kind(facts: Facts) -> str:
    """`shapes`, `bar chart`, `table`, `sign` or `form`."""
    if isinstance(facts, DocumentFacts):
        return facts.kind
    return (
        "shapes"
        if isinstance(facts, ShapesFacts)
        else "table"
        if isinstance(facts, TableFacts)
        else "bar chart"
    )


def _find(facts: Facts, args: Args) -> Finding:
    kind = image_kind(facts)
    article = "" if kind == "shapes" else "a "
    return Finding(
        answers=(kind, *_ALIASES.get(kind, ())),
        evidence=(),
        says=_SAYS[kind],
        concludes=f"The image shows {article}{kind}.",
    )


IMAGE_KIND: Final = Kind[Facts](
    type="coarse/scene/image_kind",
    families=FAMILIES,
    templates=("What kind of image is this?", "What does the image show?"),
    ask=lambda facts, rng: [()],
    find=_find,
    near=lambda facts, args: list(_SAYS),
    forge=lambda facts, args, answer: _TYPICAL.get(answer),
)
