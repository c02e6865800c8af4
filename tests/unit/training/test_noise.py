"""Noise on text embeddings."""

import torch
from torch import nn

from infinity_mm.training.noise import EmbeddingNoise

IDS = torch.zeros(1, 9, dtype=torch.long)
SAMPLES = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 0]])


def embedding() -> nn.Embedding:
    embedding = nn.Embedding(1, 4)
    nn.init.zeros_(embedding.weight)
    return embedding.requires_grad_(False)


def test_noise_is_uniform_with_the_papers_bound_for_the_length_of_the_packed_sample() -> None:
    torch.manual_seed(0)
    table = embedding()
    noise = EmbeddingNoise(table, alpha=8.0)
    noise.begin(SAMPLES)
    drawn = torch.cat([table(IDS) for _ in range(200)])
    bound = 8.0 / (4 * 4) ** 0.5  # samples of 4 tokens, 4 wide
    largest = drawn[:, :8].abs().amax()
    assert 0.98 * bound < float(largest) <= bound
    assert abs(float(drawn[:, :8].mean())) < 0.05 * bound


def test_without_a_batch_or_without_alpha_nothing_is_added() -> None:
    table = embedding()
    noise = EmbeddingNoise(table, alpha=8.0)
    assert float(table(IDS).abs().max()) == 0.0
    noise.begin(SAMPLES)
    assert float(table(IDS).abs().max()) > 0.0
    noise.end()
    assert float(table(IDS).abs().max()) == 0.0
    silent = embedding()
    EmbeddingNoise(silent, alpha=0.0).begin(SAMPLES)
    assert float(silent(IDS).abs().max()) == 0.0
