"""Reductions and functions whose last bit is NumPy's on the CPU.

PyTorch sums in another order than NumPy, and its sine may differ in the last bit with a number's place in the tensor.
With these a row's reward and observation are those of Gymnasium's own environments, whatever the number of rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def row_sum(x: Tensor) -> Tensor:
    """:return: the sum over all axes but the first, (N, …) -> (N,)."""
    x = x.flatten(1)
    if x.is_cuda:
        return x.sum(1)
    array: np.ndarray[Any, Any] = np.add.reduce(x.contiguous().numpy(), axis=1)
    return torch.from_numpy(array)


def row_norm(x: Tensor) -> Tensor:
    """:return: Euclidean lengths, (N, D) -> (N,)."""
    if x.is_cuda:
        length: Tensor = torch.linalg.vector_norm(x, dim=1)
        return length
    array = x.contiguous().numpy()
    return torch.from_numpy(np.sqrt(np.vecdot(array, array)))


def sin(x: Tensor) -> Tensor:
    """:return: the sine, of the shape of ``x``."""
    return x.sin() if x.is_cuda else torch.from_numpy(np.sin(x.contiguous().numpy()))


def cos(x: Tensor) -> Tensor:
    """:return: the cosine, of the shape of ``x``."""
    return x.cos() if x.is_cuda else torch.from_numpy(np.cos(x.contiguous().numpy()))


def squared(x: Tensor) -> Tensor:
    """:return: the square as NumPy computes it for single numbers, through C's ``pow``: ``x * x`` but for rare bits."""
    return x.square() if x.is_cuda else torch.from_numpy(np.float_power(x.contiguous().numpy(), 2)).to(x.dtype)


def centre_of_mass(masses: Tensor, positions: Tensor) -> Tensor:
    """:return: the mean of positions (N, B, 3) weighted by masses (N, B), (N, 3)."""
    if masses.is_cuda:
        moments = torch.einsum("nb,nbj->nj", masses, positions)
    else:
        moments = torch.from_numpy(np.einsum("nb,nbj->nj", masses.numpy(), positions.contiguous().numpy()))
    return moments / row_sum(masses).unsqueeze(1)
