"""What a crowd wants, from how it moves: inverse reinforcement learning in mean field games.

Yang, Ye, Trivedi, Xu, Zha: "Learning deep mean field games for modeling large population behavior", ICLR 2018, arXiv
1711.03156, reduce the game to the problem of one planner for all, and learn that planner's reward. That problem has
the game's equilibria as its solutions only where sum_k pi_k df_k/dpi_i is the same for all i, f_i the part of the
reward that the crowd decides: so for rewards without a crowd and for -a log pi_i, not for -c pi_i. The default here
asks what a single *member* wants among the crowd that was seen, by maximum causal entropy (Ziebart, Bagnell, Dey 2010),
which is right whether or not the crowd cooperates. With ``objective="planner"`` the crowd is taken for a planner's, who
minds the reward's externality; ``method="gcl_population"`` is the paper's own, :mod:`.gcl`.

Shapes: ``n`` crowds, ``N`` moves, ``d`` states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....envs.mean_field import exploitability
from ....envs.mean_field.cohorts import Trajectories
from ....envs.naming import nearest
from .crowd_models import Fit, FitConfig, score
from .gcl import GCLConfig, fit_gcl
from .mce import MCEConfig, fit_mce

METHODS: dict[str, tuple[type[FitConfig], Callable[..., Fit]]] = {
    "mce_individual": (MCEConfig, fit_mce),
    "gcl_population": (GCLConfig, fit_gcl),
}
"""Configuration and function of each method."""


def fit(
    trajectories: Trajectories,
    model: str | nn.Module = "u",
    method: str = "mce_individual",
    *,
    progress: bool = False,
    **config: Any,
) -> Any:
    """Learn what a crowd wants.

    :param trajectories: crowds observed
    :param model: terms of a linear reward joined by commas (see :data:`.rewards.TERMS`), "mlp", a module
        r(pi), (…, d) -> (…, d, d), or a :class:`~.rewards.RewardModel`; for ``gcl_population`` also
        "network", the paper's, or a :class:`~.rewards.PopulationReward`. A module given is trained in place
    :param method: one of :data:`METHODS`
    :param progress: show a bar
    :param config: fields of the method's configuration, :class:`~.mce.MCEConfig` or
        :class:`~.gcl.GCLConfig`
    :return: an :class:`~.mce.MCEFit` or a :class:`~.gcl.GCLFit`
    :raises ValueError: an unknown method, model or value (the nearest is named)
    :raises TypeError: an unknown field
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}: {nearest(method, METHODS)}")
    made, function = METHODS[method]
    return function(trajectories, model, made.from_dict(config), progress)


# -- what can be known, and how much of it was found -------------------------------------------------------------------


def cycle_invariant(policy: Tensor, tau: float = 1.0) -> Tensor:
    """tau log(P_ij P_ji / (P_ii P_jj)) = r_ij + r_ji - r_ii - r_jj, at every time: what moves alone tell of a reward.

    From one P, rewards r_ij + h_j^(n+1) - h_i^n cannot be told apart; this is what is the same for all of them.

    :param policy: P, (…, d, d)
    :param tau: temperature
    :return: (…, d, d)
    """
    return tau * reward_cycles(policy.log())


def reward_cycles(reward: Tensor) -> Tensor:
    """r_ij + r_ji - r_ii - r_jj, of rewards (…, d, d)."""
    own = reward.diagonal(dim1=-2, dim2=-1)
    return reward + reward.mT - own.unsqueeze(-1) - own.unsqueeze(-2)


def gauge_error(found: Tensor, planted: Tensor, moves: Tensor | None = None, shaped: bool = False) -> Tensor:
    """How far a time-constant u is from the planted one, by move, after what no data can tell.

    :param found: u, (d, d)
    :param planted: u, (d, d)
    :param moves: which are compared, (d, d) bool; None: all
    :param shaped: the terminal value was learned, which leaves potentials g_j - g_i open, beside a constant
    :return: differences after the best constant (and potentials) are taken away, (d, d), 0 where moves are not compared
    """
    d = len(found)
    seen = torch.ones(d, d, dtype=torch.bool, device=found.device) if moves is None else moves
    here, there = seen.nonzero(as_tuple=True)
    free = [torch.ones(len(here), 1, dtype=found.dtype, device=found.device)]
    if shaped:
        same = torch.eye(d, dtype=found.dtype, device=found.device)
        free.append(same[there] - same[here])
    columns = torch.cat(free, 1)
    difference = (found - planted)[seen]
    rest = difference - columns @ (torch.linalg.pinv(columns) @ difference)
    return torch.zeros_like(found).masked_scatter(seen, rest)


@dataclass(frozen=True)
class Recovery:
    """How much of a planted reward was found."""

    parameters: dict[str, tuple[float, float]]
    """Found and planted, by name"""
    kl: float
    """KL(planted | fitted) of a member's choice, in nats, on average over the planted crowd, its members and times"""
    jsd_final: float
    """See :class:`.crowd_models.Scores`; of predictions from the planted start against the planted flow"""
    jsd_mean: float
    """As well"""
    exploitability: float | None
    """Of the fitted policy in the planted games, mean; None where their actions are not the next states"""


def recovery(found: Fit, trajectories: Trajectories) -> Recovery:
    """Compare what was fitted with what was planted.

    :param found: a fit
    :param trajectories: with what was planted
    :return: differences
    :raises ValueError: nothing was planted
    """
    planted = trajectories.planted
    if planted is None:
        raise ValueError(
            "these crowds were observed, not sampled from a known reward: nothing is there to compare with"
        )
    rollout = found.rollout(planted.flow[:, 0])
    surprise = torch.special.xlogy(planted.kernels, planted.kernels)
    surprise = surprise - torch.where(planted.kernels > 0, planted.kernels * rollout.matrices.log(), 0.0)
    scores = score(rollout.flow, planted.flow)
    parameters = {name.removeprefix("reward."): part for name, part in found.parameters.items()}  # of a member's
    known = {name: part for name, part in parameters.items() if name in planted.parameters}
    pairs = {name: (float(part), planted.parameters[name]) for name, part in known.items()}
    gain, game = None, planted.game
    if game.A == game.S and game.post is not None and game.noise_p is None and _moves_are_states(game.post):
        gain = float(exploitability(planted.games(), rollout.matrices.unsqueeze(1)).mean())
    kl = float((planted.flow[:, :-1] * surprise.sum(-1)).sum(-1).mean())
    return Recovery(pairs, kl, scores.jsd_final, scores.jsd_mean, gain)


def _moves_are_states(post: Tensor) -> bool:
    return bool((post == torch.arange(post.shape[1], device=post.device)).all())
