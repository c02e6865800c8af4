from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_mm.errors import UserError
from infinity_mm.taxonomy.calibration import ALL, Calibration, Curve, fit, measure, sigmoid

TAGS = ("dog", "cat")


def drawn(slope: float, offset: float, num: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two tags, right as often as the curve says."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (num, 2))
    return logits, rng.random((num, 2)) < sigmoid(slope * logits + offset)


def test_platt_finds_the_curve_that_the_labels_were_drawn_from() -> None:
    logits, right = drawn(0.5, -1.0)
    found = fit(TAGS, logits, right, np.ones_like(right), tagger="t")
    for name in (ALL, *TAGS):
        assert found.curves[name].slope == pytest.approx(0.5, abs=0.06)
        assert found.curves[name].offset == pytest.approx(-1.0, abs=0.1)
    assert found.measured["brier_after"] < found.measured["brier_before"]
    assert found.measured["calibration_error_after"] < 0.03 < found.measured["calibration_error_before"]


def test_isotonic_finds_a_curve_of_any_rising_shape() -> None:
    rng = np.random.default_rng(1)
    logits = rng.uniform(-1, 1, (6000, 2))
    right = rng.random((6000, 2)) < np.where(logits < 0, 0.1, 0.8)
    curve = fit(TAGS, logits, right, np.ones_like(right), tagger="t", method="isotonic").curves[ALL]
    assert curve(np.array([-0.5, 0.5])) == pytest.approx([0.1, 0.8], abs=0.05)
    assert list(curve.probability) == sorted(curve.probability)


def test_classes_that_a_logit_separates_completely_get_a_finite_curve() -> None:
    logits = np.array([[-9.0], [-8.0], [8.0], [9.0]] * 5)
    curve = fit(("dog",), logits, logits > 0, np.ones_like(logits, dtype=bool), tagger="t").curves["*"]
    assert 0 < curve.slope < 5
    assert curve(np.array([9.0]))[0] > 0.9


def test_a_tag_with_few_labels_gets_the_curve_of_all_tags() -> None:
    logits, right = drawn(1.0, 0.0, num=60)
    right[:, 1] = False
    right[3, 1] = True
    found = fit(TAGS, logits, right, np.ones_like(right), tagger="t", min_labels=5)
    assert set(found.curves) == {ALL, "dog"}
    one = found.probabilities(("cat", "duck"), np.zeros((1, 2)))
    assert one.tolist() == [[found.curves[ALL](np.zeros(1))[0]] * 2]


def test_what_was_not_looked_for_is_neither_right_nor_wrong() -> None:
    logits, right = drawn(1.0, 0.0)
    known = np.ones_like(right)
    known[:, 1] = False
    there = fit(TAGS, logits, right, known, tagger="t").curves
    right[:, 1] = True
    assert fit(TAGS, logits, right, known, tagger="t").curves == there
    assert set(there) == {ALL, "dog"}


def test_labels_of_one_kind_alone_are_refused() -> None:
    with pytest.raises(UserError, match="none that is not"):
        fit(TAGS, np.zeros((9, 2)), np.ones((9, 2), bool), np.ones((9, 2), bool), tagger="t")


def test_a_file_holds_all_of_it_and_another_curve_has_another_fingerprint(tmp_path: Path) -> None:
    curves = {ALL: Curve(slope=2.0), "dog": Curve(at=(0.0, 1.0), probability=(0.25, 0.5))}
    made = Calibration(tagger="t", num_images=7, measured={"brier_after": 0.1}, curves=curves)
    made.save(tmp_path / "c.json")
    again = Calibration.load(str(tmp_path / "c.json"))
    assert (again, again.fingerprint) == (made, made.fingerprint)
    rows = made.probabilities(("dog", "duck"), np.array([[0.5, 0.0], [9.0, 1.0]]))
    assert rows == pytest.approx(np.array([[0.375, 0.5], [0.5, 1 / (1 + math.exp(-2))]]))
    other = Calibration(tagger="t", num_images=7, measured={}, curves={ALL: Curve(slope=3.0)})
    assert other.fingerprint != made.fingerprint


@pytest.mark.parametrize(
    "text", ["", "{}", '{"curves": {"dog": {}}, "tagger": "t"}', '{"curves": {"*": {"slop": 1}}}']
)
def test_a_file_that_is_none_is_an_error_with_the_command(tmp_path: Path, text: str) -> None:
    file = tmp_path / "calibration.json"
    for _ in range(2):
        with pytest.raises(UserError, match="calibrate-tags"):
            Calibration.load(str(file))
        file.write_text(text)


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=5, max_size=60).filter(
        lambda pairs: 0 < sum(right for _, right in pairs) < len(pairs)
    ),
    st.sampled_from(["platt", "isotonic"]),
)
def test_any_labels_give_probabilities(pairs: list[tuple[float, bool]], method: str) -> None:
    logits = np.array([[logit] for logit, _ in pairs])
    right = np.array([[right] for _, right in pairs])
    known = np.ones_like(right)
    found = fit(("dog",), logits, right, known, tagger="t", method=method)  # type: ignore[arg-type]
    rows = found.probabilities(("dog",), np.linspace(-60, 60, 50)[:, None])[:, 0]
    assert ((rows >= 0) & (rows <= 1)).all()
    if method == "isotonic":
        assert (np.diff(rows) >= -1e-9).all()


def test_the_error_of_a_calibration_is_the_distance_of_stated_from_observed() -> None:
    stated = np.array([0.1, 0.1, 0.9, 0.9])
    found = measure(stated, np.array([False, False, True, False]))
    assert found == {"brier": pytest.approx(0.21, abs=1e-6), "calibration_error": pytest.approx(0.25)}
