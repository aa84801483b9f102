"""Entropic optimal transport between uniform weights: many pairs of episodes at once, or one after another in place.

The iteration is the reference's (arXiv 2303.13971, whose code calls ott-jax): epsilon absolute, no annealing, start
f = 0, then g and f in turn, so that sums over a row are exact and sums over a column become so. It is done on
``K = exp(-C / epsilon + f + g)`` by products with vectors, ``v = b / K'u`` and ``u = a / Kv``; what u and v have
gathered is absorbed into f and g before float32 ends. The first iteration is done with logarithms, after which no
column can sum to less than ``a b``, so that nothing underflows.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = 1e4
"""Cost of a match that must not be: exp(-NEVER / epsilon) is 0 for epsilon below 100."""

CHECK = 5
"""Iterations between looks at u and v. One changes them by a factor of n, 1e3 say, at most; float32 ends at 1e38."""

GATHERED = 1e12
"""What u or v, or one over them, may become before it is absorbed."""


@dataclass(frozen=True)
class Transport:
    """What transport says of B pairs.

    :param cost: mean cost of what each row is matched with, in the unit of the costs, 0 on padding, (B, N)
    :param row_error: sum of the differences between a plan's sums over columns and the weights of rows, (B,)
    :param column_error: the other way round, (B,)
    :param iterations: how many were done
    """

    cost: Tensor
    row_error: Tensor
    column_error: Tensor
    iterations: int


def unit(states: Tensor) -> Tensor:
    """Scale states to length 1, as the cosine wants them.

    :param states: (…, D)
    :return: the same in float64, zero where a state is zero: its cosine with all others is 0, and the cost 1
    """
    tiny = torch.finfo(torch.float64).tiny
    states = states.double()
    states = states / states.abs().amax(-1, keepdim=True).clamp_min(tiny)  # whose squares are finite
    unscaled: Tensor = states / torch.linalg.vector_norm(states, dim=-1, keepdim=True).clamp_min(tiny)
    return unscaled


def cosine_cost(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """One minus the cosine of each state with each other.

    :param x: states of length 1, (B, N, D) or (N, D)
    :param y: others, (M, D)
    :param out: where to write
    :return: in [0, 2], (B, N, M) or (N, M)
    """
    return torch.matmul(x, y.mT, out=out).neg_().add_(1).clamp_(0, 2)


def log_domain(
    cost: Tensor, epsilon: float = 0.01, iterations: int = 100, weights: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Solve the plain way, in logarithms throughout: what :func:`transport` is compared with and timed against.

    :param cost: (N, M)
    :param epsilon: in the unit of the costs
    :param iterations: of both sides
    :param weights: of rows (N,) and columns (M,); by default 1 / N and 1 / M
    :return: the plan, (N, M)
    """
    n, m = cost.shape
    a, b = weights or (cost.new_full((n,), 1 / n), cost.new_full((m,), 1 / m))
    kernel = -cost / epsilon
    f = torch.zeros_like(a)
    g = torch.zeros_like(b)
    for _ in range(iterations):
        g = b.log() - torch.logsumexp(kernel + f[:, None], 0)
        f = a.log() - torch.logsumexp(kernel + g, 1)
    return (kernel + f[:, None] + g).exp()


def transport(
    cost: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    epsilon: float = 0.01,
    iterations: int = 100,
    tolerance: float | None = None,
    kernel: Tensor | None = None,
) -> tuple[Transport, Tensor]:
    """Match the rows of each pair with its columns, each row and each column having the same weight as its likes.

    Iterations are the reference's. Without ``tolerance`` there are as many as asked for, whether or not that is enough.

    :param cost: (B, N, M), finite; :data:`NEVER` where two must not be matched
    :param rows: which rows there are, (B, N) bool; others are padding. All, by default
    :param columns: which columns there are, (B, M) bool
    :param epsilon: weight of the plan's entropy, in the unit of the costs
    :param iterations: how many, with ``tolerance`` at most
    :param tolerance: stop when no pair's column error is larger
    :param kernel: memory of the costs' shape to work in
    :return: costs and errors, and the plans (B, N, M), in the kernel's memory. The plan's sum is 1
    """
    kernel = torch.empty_like(cost) if kernel is None else kernel
    a, b = _weights(cost, rows, 1), _weights(cost, columns, 2)
    f, g, u = _first(cost, kernel, a, b, epsilon)
    v = (b > 0).to(cost.dtype)
    done = 1
    while done < iterations:
        if done % CHECK == 0:
            if tolerance is not None and float(_error(v * _times(kernel.mT, u), b).max()) < tolerance:
                break
            if _far(u, a) or _far(v, b):
                f, g, u, v = f + u.log(), g + v.log(), (a > 0).to(cost.dtype), (b > 0).to(cost.dtype)
                _rebuild(cost, kernel, f, g, epsilon)
        v = _quotient(b, _times(kernel.mT, u))
        u = _quotient(a, _times(kernel, v))
        done += 1
    kernel.mul_(u[:, :, None]).mul_(v[:, None, :])
    row, column = kernel.sum(2), kernel.sum(1)
    matched = (kernel * cost).sum(2)
    return Transport(_quotient(matched, row), _error(row, a), _error(column, b), done), kernel


def _weights(cost: Tensor, there: Tensor | None, axis: int) -> Tensor:
    if there is None:
        return cost.new_full((len(cost), cost.shape[axis]), 1 / cost.shape[axis])
    weights = there.to(cost.dtype)
    return weights / weights.sum(1, keepdim=True)


def _first(cost: Tensor, kernel: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The first iteration, by sums of exponentials less their greatest.

    :return: f (B, N), g (B, M) in units of epsilon, and u (B, N); ``kernel`` belongs to these
    """
    torch.mul(cost, -1 / epsilon, out=kernel)
    if bool((a == 0).any()):
        kernel.masked_fill_((a == 0)[:, :, None], -math.inf)
    greatest = kernel.amax(1)
    _exp(kernel.sub_(greatest[:, None, :]))
    g = b.log() - greatest - kernel.sum(1).log()
    torch.mul(cost, -1 / epsilon, out=kernel).add_(g[:, None, :])
    f = -kernel.amax(2)
    _exp(kernel.add_(f[:, :, None]))
    return f, g, _quotient(a, kernel.sum(2))


def _rebuild(cost: Tensor, kernel: Tensor, f: Tensor, g: Tensor, epsilon: float) -> None:
    _exp(torch.mul(cost, -1 / epsilon, out=kernel).add_(f[:, :, None]).add_(g[:, None, :]))


def _exp(kernel: Tensor) -> None:
    """Exponentiate in place; what would be too small for a normal number becomes 0.

    Half of a kernel's entries are. torch's exp takes 15 times as long for them on a CPU as for others.
    """
    least = math.log(torch.finfo(kernel.dtype).tiny) + 0.1
    torch.threshold_(kernel.clamp_min_(least).exp_(), 1.1 * math.exp(least), 0.0)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """:return: products (B, N) of matrices (B, N, M) with vectors (B, M)."""
    if len(matrices) == 1:  # which on a CPU is twice as fast as a batch of one
        return torch.mv(matrices[0], vectors[0])[None]
    return torch.bmm(matrices, vectors[:, :, None])[:, :, 0]


def _quotient(weights: Tensor, sums: Tensor) -> Tensor:
    """:return: the quotient; 0 on padding, whose sum is 0 as well."""
    return weights / sums.clamp_min(torch.finfo(sums.dtype).tiny)


def _far(factors: Tensor, weights: Tensor) -> bool:
    there = torch.where(weights > 0, factors, 1.0)
    return bool(((there > GATHERED) | (there < 1 / GATHERED)).any())


def _error(sums: Tensor, weights: Tensor) -> Tensor:
    return (sums - weights).abs().sum(1)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Keep float32 products from being rounded to TF32 or bfloat16: they are divided by 0.01 in an exponent."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def quick_on_cpu() -> Iterator[None]:
    """One thread, and numbers below 1e-38 are 0: many of a kernel's are, and a CPU takes ten times as long for them."""
    threads, flushed = torch.get_num_threads(), float(torch.tensor(1e-39) * 1) == 0
    torch.set_num_threads(1)  # the switch is of a thread: torch's others would not have it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads)
