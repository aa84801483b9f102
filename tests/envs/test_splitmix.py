"""Random words: the published generator, and what its users count on."""

import torch
from headway.envs.splitmix import start, uniforms, uniforms_of

PUBLISHED = (6457827717110365317, 3203168211198807973, 9817491932198370423)
"""What the authors' own program prints first for the seed 1234567."""


def splitmix64(word: int, count: int) -> list[int]:
    """The generator as its authors wrote it, in whole numbers."""
    out = []
    for _ in range(count):
        word = (word + 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = word
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        out.append(z ^ (z >> 31))
    return out


def some_words() -> list[int]:
    return [1234567, 0, -1, 2**63 - 1, -(2**63), *(start(seed, 2) for seed in range(50))]


def test_it_is_splitmix64() -> None:
    assert tuple(splitmix64(1234567, 3)) == PUBLISHED
    drawn, _ = uniforms(torch.tensor([1234567]), 3)
    assert drawn[0].tolist() == [(word >> 11) / 2**53 for word in PUBLISHED]


def test_tensors_and_single_words_draw_the_same() -> None:
    words = some_words()
    for count in (1, 2, 5):
        drawn, after = uniforms(torch.tensor(words), count)
        for row, word in enumerate(words):
            alone, then = uniforms_of(word, count)
            assert drawn[row].tolist() == alone == [bits / 2**53 for bits in (b >> 11 for b in splitmix64(word, count))]
            assert after[row].item() == then
            assert -(2**63) <= then < 2**63


def test_rows_are_independent_of_each_other_and_of_how_draws_are_cut() -> None:
    words = torch.tensor(some_words())
    drawn, after = uniforms(words, 6)
    first, middle = uniforms(words[3:9], 2)
    second, end = uniforms(middle, 4)
    assert torch.equal(torch.cat((first, second), 1), drawn[3:9])
    assert torch.equal(end, after[3:9])
    pairs, _ = uniforms(words[:8].view(4, 2), 6)
    assert torch.equal(pairs.view(8, 6), drawn[:8])


def test_numbers_are_uniform_and_streams_unrelated() -> None:
    words = torch.tensor([start(seed, key) for seed in range(64) for key in (2, 3)])
    drawn, _ = uniforms(words, 1000)
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    counts = torch.histc(drawn.float(), 64, 0, 1)
    expected = drawn.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 27 < chi_square < 119  # 63 degrees of freedom: inside with probability 0.99996
    correlation = torch.corrcoef(drawn) - torch.eye(len(words))
    assert correlation.abs().max() < 6 / 1000**0.5  # standard error 1 / sqrt(1000), 8128 pairs
    along = torch.corrcoef(torch.stack((drawn[:, :-1].flatten(), drawn[:, 1:].flatten())))[0, 1]
    assert abs(along) < 4.5 / 128000**0.5


def test_seeds_start_streams_of_their_own() -> None:
    assert start(7, 2) == start(7, 2)
    assert len({start(seed, key) for seed in range(100) for key in (2, 3)}) == 200
    assert start(None, 2) != start(None, 2)
