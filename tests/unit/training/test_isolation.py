"""Packed samples and branches compute exactly what they compute alone, with the real model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_run import TWO, conversation, model_and_encoder, three_samples

from infinity_mm.data.encode import IGNORE, Encoded
from infinity_mm.data.packing import Packed, pack
from infinity_mm.model.attention import DENSE
from infinity_mm.training.loss import Weighting, label_weights, local_loss, total_weight


def logits(model: Any, batch: Packed) -> Tensor:
    return model(
        input_ids=batch.input_ids,
        sample_ids=batch.sample_ids,
        branch_ids=batch.branch_ids,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        view_shapes=batch.view_shapes,
        use_cache=False,
    ).logits.detach()


def gradients(model: Any) -> dict[str, Tensor]:
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


def assert_same_training(a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]]) -> None:
    assert a[0] == pytest.approx(b[0], abs=1e-5)
    assert a[1].keys() == b[1].keys()
    for name, grad in a[1].items():
        assert (grad - b[1][name]).abs().max() < 1e-5, name


def loss_and_gradients(
    model: Any, batches: list[Packed], weighting: Weighting = "token"
) -> tuple[float, dict[str, Tensor]]:
    weight, total = total_weight(batches, weighting), 0.0
    for batch in batches:
        loss = local_loss(model, batch, total_weight=weight, weighting=weighting).loss
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def padded(samples: list[Encoded]) -> list[list[Encoded]]:
    return [[sample] for sample in samples]


@pytest.mark.parametrize("attention", DENSE)
def test_changing_one_packed_sample_moves_no_others_logits(attention: str) -> None:
    model, encoder = model_and_encoder()
    model.set_attn_implementation(attention)
    samples, changed = three_samples(encoder), three_samples(encoder, first_image=99)
    first = len(samples[0].layout)
    before, after = (logits(model, pack([row], 256, 3)) for row in (samples, changed))
    assert (before[0, :first] - after[0, :first]).abs().max() > 0.1
    assert torch.equal(before[0, first:], after[0, first:])


@pytest.mark.parametrize("weighting", ["token", "square_root", "sample"])
def test_packed_padded_and_accumulated_give_the_same_loss_and_gradients(weighting: Weighting) -> None:
    model, encoder = model_and_encoder()
    samples = three_samples(encoder)
    packed = loss_and_gradients(model, [pack([samples], 256, 3)], weighting)
    rows = loss_and_gradients(model, [pack(padded(samples), 128, 3)], weighting)
    steps = loss_and_gradients(model, [pack([[sample]], 128, 3) for sample in samples], weighting)
    assert_same_training(packed, rows)
    assert_same_training(packed, steps)


def test_the_loss_is_the_mean_over_labelled_tokens_of_the_step() -> None:
    model, encoder = model_and_encoder()
    batch = pack([three_samples(encoder)], 256, 3)
    scores = logits(model, batch)[0, :-1].float()
    wanted = torch.nn.functional.cross_entropy(scores, batch.labels[0, 1:], ignore_index=IGNORE)
    assert float(local_loss(model, batch, total_weight=batch.num_labels).loss.detach()) == pytest.approx(
        float(wanted), abs=1e-5
    )


def test_branches_equal_separate_samples_in_logits_loss_and_gradients() -> None:
    model, encoder = model_and_encoder()
    together = pack([[encoder.encode(conversation(TWO, 1, 2), "independent")]], 256, 3)
    alone = pack(
        padded([encoder.encode(conversation([exchange], 1, 2), "causal") for exchange in TWO]), 256, 3
    )
    of_branches, of_samples = logits(model, together), logits(model, alone)
    for branch in (1, 2):
        own = ((together.branch_ids[0] == 0) | (together.branch_ids[0] == branch)) & (
            together.sample_ids[0] != 0
        )
        length = int(own.sum())
        assert torch.equal(together.input_ids[0, own], alone.input_ids[branch - 1, :length])
        assert (of_branches[0, own] - of_samples[branch - 1, :length]).abs().max() < 1e-5
    assert_same_training(loss_and_gradients(model, [together]), loss_and_gradients(model, [alone]))


def test_a_batch_without_labels_has_a_loss_of_zero_that_can_be_differentiated() -> None:
    model, encoder = model_and_encoder()
    batch = pack([three_samples(encoder)], 256, 3)
    batch.labels.fill_(IGNORE)
    loss = local_loss(model, batch, total_weight=7).loss
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_an_answer_of_n_tokens_weighs_the_square_root_of_n() -> None:
    labels = torch.tensor([[-100, 5, 5, 5, 5, -100, 7, -100], [9, 5, -100, -100, 6, 6, -100, 3]])
    assert label_weights(labels, torch.ones_like(labels), "square_root").tolist() == [
        [0, 0.5, 0.5, 0.5, 0.5, 0, 1, 0],
        [0, 1, 0, 0, pytest.approx(0.5**0.5), pytest.approx(0.5**0.5), 0, 1],
    ]


def test_by_token_every_label_weighs_one_but_that_of_the_first_position_which_nothing_predicts() -> None:
    labels = torch.tensor([[5, 5, -100, 7]])
    assert label_weights(labels, torch.ones_like(labels), "token").tolist() == [[0, 1, 0, 1]]


def test_by_sample_every_sample_weighs_one() -> None:
    labels = torch.tensor([[-100, 5, -100, 5, -100, 7, -100], [-100, -100, 6, 6, 6, 6, -100]])
    samples = torch.tensor([[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0]])
    assert label_weights(labels, samples, "sample").tolist() == [
        [0, 0.5, 0, 0.5, 0, 1, 0],
        [0, 0, 0.25, 0.25, 0.25, 0.25, 0],
    ]
