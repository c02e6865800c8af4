"""Where the loss came from and what a step cost."""

from dataclasses import replace

import pytest
import torch
from toy_run import model_and_encoder, three_samples

from infinity_mm.data.packing import pack
from infinity_mm.model.flops import forward_flops, model_sizes, training_flops
from infinity_mm.training.loss import local_loss
from infinity_mm.training.monitor import LossTally, clip, gradient_norms, peak_flops, step_flops


def test_token_losses_are_summed_by_domain_and_source_across_rows() -> None:
    model, encoder = model_and_encoder()
    a, b, c = three_samples(encoder)
    batch = pack([[a, b], [c]], 192, 3)
    batch = replace(batch, domains=(("chart", "photo"), ("chart",)), sources=(("0", "0"), ("1",)))
    tally = LossTally()
    tally.add(batch, local_loss(model, batch, total_weight=1.0).token_losses)
    totals = tally.totals()
    alone = {}
    for name, sample in (("a", a), ("b", b), ("c", c)):
        single = pack([[sample]], 192, 3)
        alone[name] = float(local_loss(model, single, total_weight=1.0).loss.detach()), single.num_labels
    for label, names in {
        ("domain", "chart"): "ac",
        ("domain", "photo"): "b",
        ("source", "0"): "ab",
        ("source", "1"): "c",
    }.items():
        assert totals[label][0] == pytest.approx(sum(alone[n][0] for n in names), rel=1e-4)
        assert totals[label][1] == sum(alone[n][1] for n in names)
    by_sample = {(s, n): loss / count for s, (n, (loss, count)) in zip("001", alone.items(), strict=True)}
    assert tally.by_sample() == pytest.approx(by_sample, rel=1e-4)


def test_useful_and_padding_operations_add_up_and_packing_changes_only_the_padding() -> None:
    model, encoder = model_and_encoder()
    samples, sizes = three_samples(encoder), model_sizes(model.config)
    parts = ["vision_tower", "connector", "language_model"]
    packed = step_flops(sizes, [pack([samples], 256, 3)], parts)
    padded = step_flops(sizes, [pack([[s] for s in samples], 256, 3)], parts)
    assert packed[0] == padded[0]
    assert 0 < packed[1] < padded[1]
    exact = pack([samples[2:]], len(samples[2].layout), 3)
    length = len(samples[2].layout)
    flops = forward_flops(
        sizes, views=(), tokens=length, labelled=samples[2].layout.num_labels, attended_pairs=length**2
    )
    assert step_flops(sizes, [exact], parts) == (training_flops(flops, trained=parts), 0)
    assert training_flops(flops, trained=parts) == 3 * flops.total


def test_norms_by_part_make_the_whole_norm_and_clipping_shortens_it() -> None:
    one, two = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    one.grad, two.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    optimizer = torch.optim.SGD([{"params": [one], "part": "a"}, {"params": [two], "part": "b"}], lr=1.0)
    norms = gradient_norms(optimizer)
    assert norms == {"a": 3.0, "b": 4.0}
    clip(optimizer, norms, 10.0)
    assert two.grad.tolist() == [4.0]
    clip(optimizer, norms, 1.0)
    assert (one.grad.tolist(), two.grad.tolist()) == ([pytest.approx(0.6), 0.0], [pytest.approx(0.8)])


def test_the_peak_is_that_of_the_named_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("NVIDIA L40") == 181e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("Some other device") is None
