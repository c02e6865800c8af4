from infinity_mm.eval.metrics import auc


def test_auc_counts_ties_half_and_is_unknown_without_both_sides() -> None:
    assert auc([3, 2], [1, 2]) == (2 + 1.5) / 4
    assert auc([1], [0]) == 1.0
    assert auc([0], [1]) == 0.0
    assert auc([], [1]) is None
