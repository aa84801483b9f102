"""Random streams in single words: SplitMix64, the same numbers on every device, and for one row as for thousands.

A stream is one 64-bit word that grows by a constant with each draw; what is drawn is a hash of it (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). So thousands of streams advance in a few
operations on tensors, and copying a word copies a stream.
"""

import numpy as np
import torch
from torch import Tensor

_WORD = 2**64
_GROWTH, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def start(seed: int | None, *key: int) -> int:
    """:return: the word at which the stream of a seed starts, signed.

    :param seed: None: from the operating system's entropy
    :param key: names one of several independent streams of the same seed
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0].view(np.int64))


def _outputs(words: Tensor, numbers: Tensor) -> Tensor:
    """:return: outputs of streams by their numbers, from 1, as signed words; shapes broadcast"""
    mixed = words + numbers * _signed(_GROWTH)
    mixed = (mixed ^ _shift(mixed, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _shift(mixed, 27)) * _signed(_SECOND)
    return mixed ^ _shift(mixed, 31)


def uniforms(words: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw evenly from [0, 1), 53 bits each.

    :param words: the streams, (…) int64
    :param count: numbers per stream
    :return: (…, count) float64, and the streams after it (…)
    """
    mixed = _outputs(words.unsqueeze(-1), torch.arange(1, count + 1, device=words.device))
    return _shift(mixed, 11).double() * 2.0**-53, words + _signed(count * _GROWTH)


def branches(words: Tensor, numbers: Tensor) -> Tensor:
    """Start streams of their own below others, which do not advance.

    :param words: the streams, (…) int64
    :param numbers: which of its branches of each, (…) int64, from 0; shapes broadcast
    :return: where the branches start
    """
    return _outputs(words, numbers + 2**40)  # beyond what is drawn from the streams themselves


def stream_of(seed: int, values: Tensor) -> Tensor:
    """Start a stream for each row of numbers, the same for the same numbers.

    :param seed: of all of them
    :param values: (B, D), of any type
    :return: (B,) int64
    """
    bits = values.double().contiguous().view(torch.int64)
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    odd = _outputs(torch.full_like(places, start(seed)), places) | 1
    return _outputs((bits * odd).sum(1), torch.full_like(bits[:, 0], start(seed, 1)))


def normals(words: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw standard normal numbers, two of each pair of uniform ones (Box and Muller, 1958).

    :param words: the streams, (…) int64
    :param count: numbers per stream
    :return: (…, count) float64, and the streams after it (…)
    """
    pairs = (count + 1) // 2
    shares, words = uniforms(words, 2 * pairs)
    radius = (-2 * torch.log1p(-shares[..., :pairs])).sqrt()  # of 1 - u, which is never 0
    angle = 2 * torch.pi * shares[..., pairs:]
    return torch.cat((radius * angle.cos(), radius * angle.sin()), -1)[..., :count], words


def uniforms_of(word: int, count: int) -> tuple[list[float], int]:
    """Draw from one stream what :func:`uniforms` draws from it, without tensors.

    :param word: the stream, signed
    :param count: numbers
    :return: the numbers, and the stream after them
    """
    drawn = []
    for _ in range(count):
        word = (word + _GROWTH) % _WORD
        mixed = (word ^ word >> 30) * _FIRST % _WORD
        mixed = (mixed ^ mixed >> 27) * _SECOND % _WORD
        drawn.append((mixed ^ mixed >> 31) >> 11)
    return [bits * 2.0**-53 for bits in drawn], _signed(word)


def _signed(word: int) -> int:
    """As tensors hold it, which have no unsigned arithmetic, and wrap the same way."""
    return (word + _WORD // 2) % _WORD - _WORD // 2


def _shift(words: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; the operator fills with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
