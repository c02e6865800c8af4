"""A loss over text alone reaches every parameter, and is not changed by that."""

import pytest
import torch
from torch import nn

from infinity_mm.model.build import ModelSpec, build_model
from infinity_mm.model.connectors.registry import CONNECTORS
from infinity_mm.model.modeling import InfinityMMForConditionalGeneration
from infinity_mm.model.tokenizer import build_tokenizer

SPEC = ModelSpec(
    vision_hidden=16, vision_layers=1, vision_heads=1, vision_mlp=16, patch_px=4, scale_px=16,
    text_hidden=16, text_layers=1, text_heads=1, text_kv_heads=1, text_mlp=16,
)  # fmt: skip


@pytest.mark.parametrize("connector", sorted(CONNECTORS))
def test_without_an_image_every_parameter_has_a_gradient_and_the_vision_side_has_zeros(
    connector: str,
) -> None:
    built, _ = build_model(SPEC, build_tokenizer(["user assistant"] * 3, 300))
    config = built.config
    config.connector, config.merge = connector, {"pixel_unshuffle_mlp": 2}.get(connector, 1)
    model = InfinityMMForConditionalGeneration(config).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    loss = model(input_ids=ids, labels=ids).loss
    plain = nn.functional.cross_entropy(model.eval()(input_ids=ids).logits[0, :-1], ids[0, 1:])
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), abs=1e-6)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "language_model" not in name:
            assert float(parameter.grad.abs().max()) == 0.0, name
