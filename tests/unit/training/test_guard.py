"""Bad steps: what counts as one, and what happens then."""

import torch

from infinity_mm.training.config import SpikeConfig
from infinity_mm.training.guard import Guard


def toy(config: SpikeConfig) -> tuple[Guard, torch.Tensor, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    return Guard(config, optimizer, ()), weight, optimizer


def learn(weight: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    weight.grad = torch.tensor([1.0])
    optimizer.step()


def test_a_spike_is_judged_by_the_median_of_a_full_window() -> None:
    guard, _, _ = toy(SpikeConfig(factor=2.0, window=3))
    for step, loss in enumerate([1.0, 9.0], 1):
        assert guard.problem(loss, 1.0) is None  # the window is not full
        guard.passed(step, loss)
    guard.passed(3, 1.2)
    assert guard.problem(2.4, 1.0) is None
    assert guard.problem(2.5, 1.0) == "loss 2.5000, more than 2 times 1.2000, the median of the last steps"
    assert guard.recent_losses == (1.0, 9.0, 1.2)


def test_loss_and_gradient_must_be_finite_whatever_the_window() -> None:
    guard, _, _ = toy(SpikeConfig())
    assert guard.problem(1.0, 1.0) is None
    assert guard.problem(float("nan"), 1.0) == "loss nan, gradient norm 1.0"
    assert guard.problem(1.0, float("inf")) == "loss 1.0, gradient norm inf"


def test_stop_stops_and_skip_goes_on_until_there_are_too_many_in_a_row() -> None:
    assert toy(SpikeConfig(action="stop"))[0].must_stop()
    guard, _, _ = toy(SpikeConfig(action="skip", max_in_a_row=3))
    assert [guard.must_stop(), guard.must_stop()] == [False, False]
    guard.passed(3, 1.0)
    assert [guard.must_stop(), guard.must_stop(), guard.must_stop()] == [False, False, True]


def test_rewind_restores_weights_and_optimiser_of_the_last_copy() -> None:
    guard, weight, optimizer = toy(SpikeConfig(action="rewind", snapshot_every_steps=2))
    learn(weight, optimizer)
    assert not guard.must_stop()  # back to the start, when the optimiser had no state
    assert weight.tolist() == [1.0]
    assert optimizer.state[weight] == {}
    for step in (1, 2):
        learn(weight, optimizer)
        guard.passed(step, 1.0)
    kept = weight.tolist(), {k: v.clone() for k, v in optimizer.state[weight].items()}
    places = [copied.data_ptr() for _, copied, _ in guard._copies]
    for step in (3, 4):
        learn(weight, optimizer)
        guard.passed(step, 1.0)
    assert [copied.data_ptr() for _, copied, _ in guard._copies] == places  # never two copies at once
    kept = weight.tolist(), {k: v.clone() for k, v in optimizer.state[weight].items()}
    learn(weight, optimizer)
    assert not guard.must_stop()
    assert weight.tolist() == kept[0]
    assert {k: v.tolist() for k, v in optimizer.state[weight].items()} == {
        k: v.tolist() for k, v in kept[1].items()
    }
