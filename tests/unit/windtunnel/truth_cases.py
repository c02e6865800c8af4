"""One literal case for every type of question: a scene, an answer, the fact that is changed, the new answer."""

from dataclasses import replace
from typing import Any, NamedTuple

from infinity_mm.windtunnel.scene import (
    Bar,
    ChartFacts,
    Cosmetic,
    DocumentFacts,
    Facts,
    Line,
    Row,
    Scene,
    ShapesFacts,
    TableFacts,
    Thing,
)


class Case(NamedTuple):
    """A question whose answer must follow the fact it is about."""

    type: str
    question: str
    facts: Facts
    answer: str
    changed: Facts
    new_answer: str


def scene_of(facts: Facts) -> Scene:
    """A scene with these facts, large enough for all of them."""
    families = {ShapesFacts: "shapes", ChartFacts: "chart", TableFacts: "table", DocumentFacts: "document"}
    font_px = 0 if isinstance(facts, ShapesFacts) else 10
    return Scene(
        family=families[type(facts)],
        width=128,
        height=128,
        facts=facts,
        cosmetic=Cosmetic(seed=1, font_px=font_px),
    )


CIRCLE = Thing(shape="circle", color="red", size="large", row=0, column=0)
STAR = Thing(shape="star", color="blue", size="small", row=2, column=1)
SHAPES = ShapesFacts(things=(CIRCLE, STAR))
CHART = ChartFacts(
    bars=(Bar(label="Tea", value=12, color="red"), Bar(label="Rice", value=7, color="blue")), title="Sales"
)
TABLE = TableFacts(
    headers=("Item", "Qty", "Cost"),
    rows=(Row(item="Tea", numbers=(12, 5)), Row(item="Rice", numbers=(7, 40))),
)
SIGN = DocumentFacts(
    kind="sign", background="red", lines=(Line(label="", value="STOP"), Line(label="", value="EXIT"))
)
FORM = DocumentFacts(
    kind="form", background="", lines=(Line(label="Name", value="Ana"), Line(label="Total", value="47"))
)


def _first(**changes: Any) -> ShapesFacts:
    return ShapesFacts(things=(replace(CIRCLE, **changes), STAR))


def _bar(**changes: Any) -> ChartFacts:
    return replace(CHART, bars=(replace(CHART.bars[0], **changes), CHART.bars[1]))


def _cell(number: int) -> TableFacts:
    return replace(TABLE, rows=(Row(item="Tea", numbers=(number, 5)), TABLE.rows[1]))


def _line(facts: DocumentFacts, i: int, **changes: str) -> DocumentFacts:
    lines = list(facts.lines)
    lines[i] = replace(lines[i], **changes)
    return replace(facts, lines=tuple(lines))


ONE_BAR = replace(CHART, bars=CHART.bars[:1])
ONE_ROW = replace(TABLE, rows=TABLE.rows[:1])
TWO_COLUMNS = TableFacts(headers=("Item", "Qty"), rows=(Row(item="Tea", numbers=(12,)),))
ONE_LINE = replace(SIGN, lines=SIGN.lines[:1])

CASES = (
    Case("coarse/scene/image_kind", "What kind of image is this?", SIGN, "sign", FORM, "form"),
    Case(
        "fine_single/attribute/color",
        "What color is the circle?",
        SHAPES,
        "red",
        _first(color="green"),
        "green",
    ),
    Case(
        "fine_single/attribute/shape",
        "What shape is the red object?",
        SHAPES,
        "circle",
        _first(shape="cross"),
        "cross",
    ),
    Case(
        "fine_single/attribute/size",
        "What size is the red circle?",
        SHAPES,
        "large",
        _first(size="small"),
        "small",
    ),
    Case(
        "fine_single/localization/place",
        "Where is the circle?",
        SHAPES,
        "top left",
        _first(row=1, column=2),
        "right",
    ),
    Case(
        "fine_single/recognition/object_at",
        "What is at the top left?",
        SHAPES,
        "red circle",
        _first(color="black"),
        "black circle",
    ),
    Case("fine_cross/counting/count", "Count the red objects.", SHAPES, "1", _first(color="blue"), "0"),
    Case("logic/existence/present", "Is there a red circle?", SHAPES, "yes", _first(shape="square"), "no"),
    Case(
        "relation/spatial/relative", "Is the circle left of the star?", SHAPES, "yes", _first(column=2), "no"
    ),
    Case(
        "fine_cross/comparison/larger",
        "Is the circle larger than the star?",
        SHAPES,
        "yes",
        _first(size="small"),
        "no",
    ),
    Case(
        "fine_cross/comparison/same_color",
        "Are the circle and the star the same color?",
        SHAPES,
        "no",
        _first(color="blue"),
        "yes",
    ),
    Case("chart/value/read_value", "What is the value of Tea?", CHART, "12", _bar(value=13), "13"),
    Case(
        "chart/attribute/bar_color",
        "What color is the bar for Tea?",
        CHART,
        "red",
        _bar(color="black"),
        "black",
    ),
    Case("chart/extreme/highest", "Which bar is the highest?", CHART, "Tea", _bar(value=3), "Rice"),
    Case("chart/extreme/lowest", "Which bar is the lowest?", CHART, "Rice", _bar(value=3), "Tea"),
    Case("chart/counting/bars", "How many bars are there?", CHART, "2", ONE_BAR, "1"),
    Case("ocr/text/title", "What is the title?", CHART, "Sales", replace(CHART, title="Farm"), "Farm"),
    Case("chart/comparison/higher", "Is Tea higher than Rice?", CHART, "yes", _bar(value=3), "no"),
    Case("logic/arithmetic/difference", "How far apart are Rice and Tea?", CHART, "5", _bar(value=3), "4"),
    Case("logic/arithmetic/sum", "What is the sum of Tea and Rice?", CHART, "19", _bar(value=3), "10"),
    Case("table/cell/lookup", "What is the Qty of Tea?", TABLE, "12", _cell(99), "99"),
    Case("table/extreme/highest", "Which item has the highest Qty?", TABLE, "Tea", _cell(1), "Rice"),
    Case("table/extreme/lowest", "Which item has the lowest Qty?", TABLE, "Rice", _cell(1), "Tea"),
    Case("table/comparison/higher", "Does Tea have a higher Qty than Rice?", TABLE, "yes", _cell(1), "no"),
    Case("table/structure/items", "How many items does the table list?", TABLE, "2", ONE_ROW, "1"),
    Case("table/structure/columns", "Count the columns of the table.", TABLE, "3", TWO_COLUMNS, "2"),
    Case(
        "ocr/table/header",
        "Read the header of column 2.",
        TABLE,
        "Qty",
        replace(TABLE, headers=("Item", "Sold", "Cost")),
        "Sold",
    ),
    Case("ocr/text/read_line", "What does line 2 say?", SIGN, "EXIT", _line(SIGN, 1, value="PARK"), "PARK"),
    Case("ocr/counting/lines", "How many lines of text are there?", SIGN, "2", ONE_LINE, "1"),
    Case(
        "ocr/text/read_sign",
        "What does the sign say?",
        SIGN,
        "STOP EXIT",
        _line(SIGN, 0, value="NO"),
        "NO EXIT",
    ),
    Case(
        "coarse/attribute/sign_color",
        "What color is the sign?",
        SIGN,
        "red",
        replace(SIGN, background="blue"),
        "blue",
    ),
    Case("ocr/document/field_value", "What is the Total?", FORM, "47", _line(FORM, 1, value="74"), "74"),
    Case(
        "ocr/document/field_name", "Which field says Ana?", FORM, "Name", _line(FORM, 0, label="City"), "City"
    ),
    Case("logic/existence/text", "Does any line say STOP?", SIGN, "yes", _line(SIGN, 0, value="SLOW"), "no"),
)
