"""DCAC's losses one row at a time, in Python: what the batched ones are held against, in value and in speed.

A recorded fragment is a list of augmented states. Each row is replayed by itself: its buffers are lists of actions that
are put together anew at every step, and every network sees one state. Slow, and meant to be checked by reading it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class State:
    """x = (m, u, omega, kappa, beta), as a delayed environment shows it, and how it was come to.

    :param m: observation, (D,)
    :param u: K actions, newest first, (A,) each
    :param omega: age of ``m``
    :param kappa: age, at capture, of the action that acts next
    :param beta: age, at capture, of the action that led to ``m``
    :param reward: delivered with it
    :param terminated: it is terminal
    """

    m: Tensor
    u: list[Tensor]
    omega: int
    kappa: int
    beta: int
    reward: float = 0.0
    terminated: bool = False


def network_input(x: State, u: list[Tensor], widths: tuple[int, int]) -> Tensor:
    """:return: a state, with another buffer, as networks read it, (1, X)"""
    omega, kappa = (F.one_hot(torch.tensor(age), n) for age, n in zip((x.omega, x.kappa), widths, strict=True))
    return torch.cat([x.m, omega.to(x.m.dtype), kappa.to(x.m.dtype), *u]).unsqueeze(0)


def length_of(fragment: list[State]) -> int:
    """:return: how many steps after the first no observation was influenced by a replaced action"""
    n = 0
    for t, x in enumerate(fragment[1:], 1):
        if x.omega + x.beta < t:
            break
        n = t
        if x.terminated:
            break
    return n


def row(
    fragment: list[State],
    actor: Any,
    critics: Any,
    target_critics: Any,
    noise: Tensor,
    alpha: float,
    gamma: float,
    scale: float,
    widths: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """One row.

    :param fragment: x_0, x_1, … of one episode
    :param actor: the policy
    :param critics: V_j
    :param target_critics: V'_j
    :param noise: standard normal, (S, A)
    :param alpha: temperature
    :param gamma: discount
    :param scale: factor on rewards
    :param widths: of the one-hot omega and kappa
    :return: y, the critics' loss, the actor's loss
    """
    n, u = length_of(fragment), list(fragment[0].u)
    log_probs = []
    for t in range(n):
        action, log_prob = actor.sample(network_input(fragment[t], u, widths), noise[t : t + 1])
        u = [action[0], *u[:-1]]
        log_probs.append(log_prob[0])
    x_n = network_input(fragment[n], u, widths)
    goes_on = 0.0 if fragment[n].terminated else 1.0
    with torch.no_grad():
        y = goes_on * target_critics(x_n).min()
        for t in reversed(range(n)):
            y = scale * fragment[t + 1].reward - alpha * log_probs[t] + gamma * y
    objective = goes_on * critics(x_n).min()
    for t in reversed(range(n)):
        objective = -alpha * log_probs[t] + gamma * objective
    values = critics(network_input(fragment[0], fragment[0].u, widths))
    return y, ((values - y) ** 2).sum(), -objective


def losses(fragments: list[list[State]], *networks: Any, noise: Tensor, **others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """All rows, one after the other.

    :param fragments: B of them
    :param networks: actor, critics, target critics
    :param noise: (S, B, A)
    :param others: of :func:`row`
    :return: y (B,), the critics' loss, the actor's loss
    """
    rows = [row(fragment, *networks, noise=noise[:, i], **others) for i, fragment in enumerate(fragments)]
    y, critic, actor = (torch.stack(part) for part in zip(*rows, strict=True))
    return y, critic.mean(), actor.mean()
