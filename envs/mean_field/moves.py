"""Where actions take a crowd: masses pushed forwards, expectations taken backwards.

Everything here is laid out for speed, as (S, …, L): states first, L = games x populations last, so that what is done
for every game stands side by side in memory, and a single game is a vector.
"""

from typing import Protocol

import torch
from torch import Tensor

from .game import MFGame

DENSE = 256
"""Up to so many states noise is a matrix product, which is faster than gathering on any device (our choice)."""

SMALL = 16384
"""Up to so many entries (S A, S) a move and its noise are one matrix product (our choice)."""

KEPT = 2**24
"""Up to so many probabilities that depend on the crowd are kept from one pass for the next, 128 MB (our choice)."""


class Ways(Protocol):
    """How a game's members get from state to state."""

    def expect(self, values: Tensor) -> Tensor:
        """Take the expectation of what comes next.

        :param values: of the next states, (S, L)
        :return: (S, A, L)
        """

    def push(self, joint: Tensor) -> Tensor:
        """Move a crowd.

        :param joint: mass by state and action, (S, A, L)
        :return: mass by next state, (S, L)
        """


class Layout:
    """Between the shapes of the interface, (…, n_pop, …, S, …), and (…, S, …, L).

    :param game: the game
    :param batch: leading dimensions of all that is computed
    """

    def __init__(self, game: MFGame, batch: tuple[int, ...]) -> None:
        self.game, self.lead = game, (*batch, game.n_pop)
        self.columns = 1
        for size in self.lead:
            self.columns *= size

    def inward(self, part: Tensor, own: int) -> Tensor:
        """:return: (…, n_pop, *own) -> (*own, L), ``own`` the number of dimensions after n_pop."""
        part = part.expand(*self.lead, *part.shape[part.ndim - own :])
        return part.flatten(0, len(self.lead) - 1).movedim(0, -1).contiguous()

    def outward(self, part: Tensor) -> Tensor:
        """:return: (*own, L) -> (…, n_pop, *own)."""
        return part.movedim(-1, 0).reshape(*self.lead, *part.shape[:-1]).contiguous()

    def crowd(self, mu: Tensor) -> Tensor:
        """:return: (…, S, L) -> (…, *batch, n_pop, S), as rewards want it; a view."""
        if len(self.lead) == 1:
            return mu.mT
        return mu.view(*mu.shape[:-1], *self.lead).movedim(mu.ndim - 2, -1)

    def rewards(self, part: Tensor, times: tuple[int, ...], own: int) -> Tensor:
        """:return: what a function of (t, mu) returned, (T…, …, n_pop, *own) -> (T…, *own, L)."""
        game = self.game
        sizes = (game.S, game.A)[:own] if own < 3 else part.shape[-own:]
        part = part.to(game.dtype).expand(*times, *self.lead, *sizes)
        front = len(times)
        return part.flatten(front, front + len(self.lead) - 1).movedim(front, -1).contiguous()


class Dense:
    """One matrix for moves and noise, where it is small, and the same for every game, population and time."""

    def __init__(self, game: MFGame) -> None:
        self.S, self.A = game.S, game.A
        if game.post is not None:
            rows = _noise(game)[game.post]
        else:
            assert game.succ_idx is not None
            assert game.succ_p is not None
            rows = torch.zeros(game.S, game.A, game.S, dtype=game.dtype, device=game.device)
            rows.scatter_add_(2, game.succ_idx, game.succ_p.to(game.dtype))
        self.P = rows.contiguous()  # (S, A, S): from, by, to
        self.matrix = self.P.view(self.S * self.A, self.S)

    def expect(self, values: Tensor) -> Tensor:
        """See :class:`Ways`."""
        return (self.matrix @ values).view(self.S, self.A, -1)

    def push(self, joint: Tensor) -> Tensor:
        """See :class:`Ways`."""
        return self.matrix.T @ joint.flatten(0, 1)

    def chain(self, policy: Tensor) -> Tensor:
        """:return: the Markov chain of a policy (H, S, A, 1) of a single game, (H, S, S): from, to."""
        return torch.bmm(policy.squeeze(-1).transpose(0, 1), self.P).transpose(0, 1)


class TwoStages:
    """Deterministic moves, then noise that depends on where they lead."""

    def __init__(self, game: MFGame, layout: Layout) -> None:
        assert game.post is not None
        self.S, self.A = game.S, game.A
        self.post = game.post.flatten()
        self.idx, self.p, self.matrix = game.noise_idx, None, None
        if game.noise_p is not None:
            if game.noise_p.ndim == 2 and game.S <= DENSE:
                self.matrix = _noise(game)
            else:
                p = game.noise_p.to(game.dtype)
                self.p = layout.inward(p, 2) if p.ndim > 2 else p.unsqueeze(-1)  # (S, K, L or 1)

    def expect(self, values: Tensor) -> Tensor:
        """See :class:`Ways`."""
        if self.matrix is not None:
            values = self.matrix @ values
        elif self.p is not None:
            assert self.idx is not None
            values = (values.index_select(0, self.idx.flatten()).view(*self.idx.shape, -1) * self.p).sum(1)
        return values.index_select(0, self.post).view(self.S, self.A, -1)

    def push(self, joint: Tensor) -> Tensor:
        """See :class:`Ways`."""
        moved = joint.new_zeros(self.S, joint.shape[-1]).index_add_(0, self.post, joint.flatten(0, 1))
        if self.matrix is not None:
            return self.matrix.T @ moved
        if self.p is not None:
            assert self.idx is not None
            spread = (moved.unsqueeze(1) * self.p).flatten(0, 1)
            return torch.zeros_like(moved).index_add_(0, self.idx.flatten(), spread)
        return moved


class Successors:
    """A list of successors for each state and action.

    :param idx: (S, A, K)
    :param p: (S, A, K, L or 1)
    """

    def __init__(self, idx: Tensor, p: Tensor) -> None:
        self.idx, self.p = idx, p

    def expect(self, values: Tensor) -> Tensor:
        """See :class:`Ways`."""
        led_to = values.index_select(0, self.idx.flatten()).view(*self.idx.shape, -1)
        return (led_to * self.p).sum(2)

    def push(self, joint: Tensor) -> Tensor:
        """See :class:`Ways`."""
        spread = (joint.unsqueeze(2) * self.p).flatten(0, 2)
        return joint.new_zeros(len(self.idx), joint.shape[-1]).index_add_(0, self.idx.flatten(), spread)


class CrowdedWays:
    """Successors whose probabilities depend on the crowd."""

    def __init__(self, game: MFGame, layout: Layout) -> None:
        assert game.succ_idx is not None
        assert game.transition is not None
        self.idx, self.transition, self.layout, self.dtype = game.succ_idx, game.transition, layout, game.dtype
        self.can_be_kept = game.H * game.succ_idx.numel() * layout.columns <= KEPT

    def at(self, t: int, mu: Tensor) -> Successors:
        """:return: the ways at a time when the crowd is at (S, L)."""
        p = self.transition(t, self.layout.crowd(mu)).to(self.dtype)
        return Successors(self.idx, self.layout.inward(p.expand(*p.shape[:-3], *self.idx.shape), 3))


def _noise(game: MFGame) -> Tensor:
    """:return: where noise takes members, (from, to)."""
    if game.noise_p is None:
        return torch.eye(game.S, dtype=game.dtype, device=game.device)
    assert game.noise_idx is not None
    matrix = torch.zeros(game.S, game.S, dtype=game.dtype, device=game.device)
    return matrix.scatter_add_(1, game.noise_idx, game.noise_p.to(game.dtype))


def ways_of(game: MFGame, layout: Layout) -> Ways | CrowdedWays:
    """:return: how a game's members move."""
    if game.dynamic:
        return CrowdedWays(game, layout)
    same_for_all = (game.noise_p is None or game.noise_p.ndim == 2) and (game.succ_p is None or game.succ_p.ndim == 3)
    if same_for_all and game.S**2 * game.A <= SMALL:
        return Dense(game)
    if game.post is not None:
        return TwoStages(game, layout)
    assert game.succ_idx is not None
    assert game.succ_p is not None
    p = game.succ_p.to(game.dtype)
    return Successors(game.succ_idx, layout.inward(p, 3) if p.ndim > 3 else p.unsqueeze(-1))
