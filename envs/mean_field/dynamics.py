"""What follows from a policy or a flow of a mean field game, exactly: flows, values, best responses, exploitability."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .game import MFGame
from .regularisers import Entropy
from .sweeps import Rewards, Sweeps, Tie

TIE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Actions whose values differ by no more count as equally good (our choice)."""


class BestResponse(NamedTuple):
    """The best that one member can do while the crowd moves on as it does."""

    policy: Tensor
    """(…, n_pop, H, S, A)"""
    values: Tensor
    """Of states, (…, n_pop, H + 1, S)"""
    q_values: Tensor
    """Of actions, (…, n_pop, H, S, A), -inf where illegal"""


def flow(game: MFGame, policy: Tensor) -> Tensor:
    """Where the crowd goes when all follow a policy.

    :param game: the game
    :param policy: (…, n_pop, H, S, A)
    :return: its distributions, (…, n_pop, H + 1, S)
    :raises ValueError: see :meth:`MFGame.check_policy`
    """
    policy = game.check_policy(policy)
    sweeps = Sweeps(game, tuple(policy.shape[:-4]))
    return sweeps.layout.outward(sweeps.forward(sweeps.layout.inward(policy, 3)))


def best_response(
    game: MFGame, mu: Tensor, tau: float = 0.0, tie: Tie = "split", tol: float | None = None
) -> BestResponse:
    """The best response to a flow.

    :param game: the game
    :param mu: where the crowd is, (…, n_pop, H + 1, S)
    :param tau: temperature of an entropy bonus, in the reward's unit; 0: the game's own regulariser, if it has one
    :param tie: "split": equally good actions are taken equally often; "first": the one with the lowest index
    :param tol: values that differ by no more are equally good; None: 1e-9, in float32 1e-4
    :return: policy and values
    :raises ValueError: see :meth:`MFGame.check_flow`
    """
    mu = game.check_flow(mu)
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol must be at least 0, got {tol}")
    sweeps = Sweeps(softened(game, tau), tuple(mu.shape[:-3]))
    inward = sweeps.layout.inward(mu, 2)
    q, values = sweeps.best(inward, rewards := sweeps.rewards(inward))
    policy = sweeps.greedy(q, _known_tie(tie), TIE_TOLERANCE.get(game.dtype, 1e-4) if tol is None else tol)
    outward = sweeps.layout.outward
    return BestResponse(outward(policy), outward(values), outward(q + rewards.state.unsqueeze(2)))


def policy_values(game: MFGame, policy: Tensor, mu: Tensor | None = None) -> Tensor:
    """What a member earns from each state and time on by following a policy.

    :param game: the game
    :param policy: of that member, (…, n_pop, H, S, A)
    :param mu: where the crowd is, (…, n_pop, H + 1, S); None: where the policy takes it
    :return: (…, n_pop, H + 1, S)
    :raises ValueError: see :meth:`MFGame.check_policy` and :meth:`MFGame.check_flow`
    """
    policy = game.check_policy(policy)
    mu = flow(game, policy) if mu is None else game.check_flow(mu)
    batches = tuple(policy.shape[:-4]), tuple(mu.shape[:-3])
    try:
        batch = np.broadcast_shapes(*batches)
    except ValueError:
        raise ValueError(
            f"leading dimensions of policy {batches[0]} and flow {batches[1]} do not go together"
        ) from None
    sweeps = Sweeps(game, batch)
    inward = sweeps.layout.inward(mu, 2)
    _, values = sweeps.evaluate(sweeps.layout.inward(policy, 3), inward, sweeps.rewards(inward))
    return sweeps.layout.outward(values)


def policy_value(game: MFGame, policy: Tensor, mu: Tensor | None = None) -> Tensor:
    """What a member earns by following a policy, before it knows where it starts.

    :param game: the game
    :param policy: of that member, (…, n_pop, H, S, A)
    :param mu: where the crowd is, (…, n_pop, H + 1, S); None: where the policy takes it
    :return: (…, n_pop)
    :raises ValueError: see :meth:`MFGame.check_policy` and :meth:`MFGame.check_flow`
    """
    return (game.mu0 * policy_values(game, policy, mu)[..., 0, :]).sum(-1)


def exploitability(game: MFGame, policy: Tensor, tau: float = 0.0) -> Tensor:
    """What one member could gain by leaving a policy that all others follow: NashConv, 0 at a Nash equilibrium.

    :param game: the game
    :param policy: (…, n_pop, H, S, A)
    :param tau: temperature of an entropy bonus; 0: the game's own regulariser, if it has one
    :return: (…,), summed over populations
    :raises ValueError: see :meth:`MFGame.check_policy`
    """
    policy = game.check_policy(policy)
    sweeps = Sweeps(softened(game, tau), tuple(policy.shape[:-4]))
    inward = sweeps.layout.inward(policy, 3)
    mu = sweeps.forward(inward)
    rewards = sweeps.rewards(mu)
    return exploited(sweeps, inward * mu[:-1].unsqueeze(2), mu, rewards, sweeps.best(mu, rewards)[1])


def exploited(sweeps: Sweeps, joint: Tensor, mu: Tensor, rewards: Rewards, best_values: Tensor) -> Tensor:
    """:return: the exploitability (*batch,) of occupancies (H, S, A, L), given the values of the best response."""
    gains = (sweeps.mu0 * best_values[0]).sum(0) - sweeps.earned(joint, mu, rewards)  # (L,)
    return gains.view(sweeps.layout.lead).sum(-1)


def softened(game: MFGame, tau: float) -> MFGame:
    """:return: the game with an entropy bonus of this temperature; 0: as it is.

    :raises ValueError: it has a regulariser of its own already
    """
    if tau == 0:
        return game
    if game.regulariser is not None:
        raise ValueError(f"{game.name} has a regulariser of its own, {game.regulariser}: leave tau at 0, got {tau}")
    return replace(game, regulariser=Entropy(tau))


def _known_tie(tie: str) -> Tie:
    if tie not in ("split", "first"):
        raise ValueError(f"tie is {tie!r}: it can be 'split' or 'first'")
    return tie  # type: ignore[return-value]
