"""What a crowd wants, from how it moves: inverse reinforcement learning in mean field games.

Yang, Ye, Trivedi, Xu, Zha: "Learning deep mean field games for modeling large population behavior", ICLR 2018, arXiv
1711.03156, reduce the game to the problem of one planner for all, and learn that planner's reward. That problem has
the game's equilibria as its solutions only where sum_k pi_k df_k/dpi_i is the same for all i, f_i the part of the
reward that the crowd decides: so for rewards without a crowd and for -a log pi_i, not for -c pi_i. The default here
asks what a single *member* wants among the crowd that was seen, by maximum causal entropy (Ziebart, Bagnell, Dey 2010),
which is right whether or not the crowd cooperates. With ``objective="planner"`` the crowd is taken for a planner's, who
minds the reward's externality; ``method="gcl_population"`` is the paper's own, :mod:`.mean_field.gcl`.

Shapes: ``n`` crowds, ``N`` moves, ``d`` states.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from tqdm import tqdm

from ..envs.mean_field import Entropy, MFGame, exploitability
from ..envs.mean_field.cohorts import Trajectories
from ..envs.naming import nearest
from .mean_field.baselines import Fit, FitConfig, Rollout, score
from .mean_field.gcl import GCLConfig, fit_gcl
from .mean_field.members import Equilibrium, MCEConfig, Members
from .mean_field.rewards import LinearReward, reward_model

GOOD_GRADIENT = 1e-6
"""A fit whose derivatives are all smaller has converged, however it stopped (our choice)."""


class MCEFit(Fit):
    """What :func:`fit` found by maximum causal entropy.

    :param members: with the reward found
    :param config: of the fit
    :param loss: mean negative log-likelihood of a move, in nats, plus the penalty
    :param iterations: of L-BFGS
    :param converged: whether it stopped because it could not get better
    :param message: why it stopped
    """

    config: MCEConfig

    def __init__(
        self, members: Members, config: MCEConfig, loss: float, iterations: int, converged: bool, message: str
    ) -> None:
        super().__init__("mce_individual", config, len(members.times))
        self.members, self.loss, self.iterations = members, loss, iterations
        self.converged, self.message = converged, message

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What was learned, by name: the reward's parameters, and the terminal value V^N as ``final``, (d,)."""
        found = dict(self.members.reward.named_parameters()) | {"final": self.members.final}
        return {name: part.detach().clone() for name, part in found.items()}

    @torch.no_grad()
    def reward(self, pi: Tensor, time: Tensor | float = 0.0) -> Tensor:
        """Evaluate the reward found, without its entropy.

        :param pi: crowds, (…, d)
        :param time: share of the horizon that is over, (…, 1)
        :return: r_ij, (…, d, d)
        """
        time = torch.as_tensor(time, dtype=torch.float64, device=pi.device)
        found: Tensor = self.members.reward(pi, time)
        return found.expand(*pi.shape, pi.shape[-1])

    @torch.no_grad()
    def response(self, flow: Tensor) -> Tensor:
        """How members choose among a crowd that moves along a flow; a planner's crowd has none.

        :param flow: (n, N + 1, d)
        :return: P, (n, N, d, d)
        :raises ValueError: the fit was a planner's
        """
        if self.config.objective == "planner":
            raise ValueError("members of a planner's crowd do not respond to it: call rollout, or fit 'individual'")
        return self.members.log_policy(flow[:, :-1]).exp()

    @torch.no_grad()
    def rollout(self, pi0: Tensor, step: float = 0.05, sweeps: int = 3000) -> Rollout:
        """Predict crowds from their start alone, in the equilibrium of the reward.

        :param pi0: (n, d)
        :param step: of the damped fixed point
        :param sweeps: of it, at most
        :return: flow and matrices
        :raises RuntimeError: no equilibrium was found
        """
        return Rollout(*self.members.settle(pi0, step, sweeps))

    def log_likelihood(self, trajectories: Trajectories) -> float:
        """:return: mean log-likelihood of the moves seen, in nats; -inf if one was seen that has no probability."""
        with torch.no_grad():
            if self.config.flow == "model" or self.config.objective == "planner":
                log_p = self.rollout(trajectories.pi[:, 0]).matrices.log()
            else:
                log_p = self.members.log_policy(trajectories.pi[:, :-1])
            counts = trajectories.counts
            return float(torch.where(counts > 0, counts * log_p, 0.0).sum() / counts.sum())

    def game(self, mu0: Tensor) -> MFGame:
        """The game that members play who have this reward, for solvers and exact exploitability.

        :param mu0: (1, d), or (n, 1, d) for a batch
        :return: its actions are the next states
        """
        members, d = self.members, mu0.shape[-1]
        final = members.final.detach()

        @torch.no_grad()
        def earned(t: Any, mu: Tensor) -> Tensor:
            time = torch.as_tensor(t, dtype=torch.float64, device=mu.device) / self.horizon
            return self.reward(mu, time.expand(*mu.shape[:-1], 1))

        return MFGame(
            name="fitted crowd",
            S=d,
            A=d,
            H=self.horizon,
            mu0=mu0,
            r_state=lambda t, mu: torch.zeros_like(mu),
            r_action=earned,
            terminal=lambda mu: final.expand_as(mu),
            legal=members.moves,
            post=torch.arange(d, device=mu0.device).expand(d, d).contiguous(),
            regulariser=Entropy(self.config.tau),
        )


def fit_mce(data: Trajectories, model: str | nn.Module, config: MCEConfig, progress: bool) -> MCEFit:
    """See :func:`fit`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        reward = reward_model(model, data.d).to(data.pi.device)
    own_numbers = isinstance(reward, LinearReward) and bool({"u", "drift"} & set(reward.terms))
    moves = torch.ones(data.d, data.d, dtype=torch.bool, device=data.pi.device)
    if config.moves == "seen" or (config.moves == "auto" and own_numbers):
        moves = data.counts.sum((0, 1)) > 0
        moves |= torch.diag(~moves.any(1))  # where nobody left, they stay
    members = Members(reward, config, moves, data.horizon).to(data.pi.device)

    counts, pi = data.counts, data.pi[:, :-1]
    joint = pi.unsqueeze(-1) * data.matrices()

    def loss(log_p: Tensor) -> Tensor:
        likelihood = (counts * log_p.masked_fill(counts == 0, 0.0)).sum() / counts.sum()
        penalty = sum((part.square().sum() for part in members.parameters() if part.requires_grad), torch.zeros(()))
        return config.l2 * penalty - likelihood

    result = _minimise(members, lambda: loss(members.log_policy(pi, joint)), config, "fit", progress)
    if config.flow == "model" and reward.crowded:
        crowds = Equilibrium(members, data.pi[:, 0], pi)
        result = _minimise(members, lambda: loss(members.log_policy(crowds.solve())), config, "own flow", progress)
        if not crowds.solved:
            result.success, result.message = False, f"the crowd's equilibrium was not found; {result.message}"
    return MCEFit(members, config, float(result.fun), int(result.nit), bool(result.success), str(result.message))


def _minimise(members: Members, loss: Callable[[], Tensor], config: MCEConfig, title: str, progress: bool) -> Any:
    """Minimise over the parameters of members, from where they are, by L-BFGS; :return: SciPy's result."""
    parameters = [part for part in members.parameters() if part.requires_grad]

    def evaluate(numbers: Any) -> Any:
        vector = torch.from_numpy(np.ascontiguousarray(numbers)).to(members.final.device)
        nn.utils.vector_to_parameters(vector, parameters)
        value = loss()
        slopes = torch.autograd.grad(value, parameters)
        return value.item(), nn.utils.parameters_to_vector(slopes).cpu().numpy()

    first: Any = nn.utils.parameters_to_vector(parameters).detach().cpu().numpy()
    options: Any = {"maxiter": config.max_iterations, "maxfun": 20 * config.max_iterations, "maxcor": 50}
    options |= {"ftol": 1e-15, "gtol": config.gradient_tolerance}
    with tqdm(desc=title, unit=" iterations", disable=not progress, leave=False) as bar:

        def shown(xk: Any) -> None:
            bar.update()

        result: Any = minimize(evaluate, first, jac=True, method="L-BFGS-B", options=options, callback=shown)
    if not math.isfinite(result.fun):
        raise ValueError(f"the fit's loss became {result.fun}: see that the model returns finite rewards")
    _, slopes = evaluate(result.x)
    # Close to the last digit a line search may find nothing better, and call that abnormal.
    result.success = bool(result.success) or float(np.abs(slopes).max()) < GOOD_GRADIENT
    return result


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
    :param model: terms of a linear reward joined by commas (see :data:`.mean_field.rewards.TERMS`), "mlp", a module
        r(pi), (…, d) -> (…, d, d), or a :class:`~.mean_field.rewards.RewardModel`; for ``gcl_population`` also
        "network", the paper's, or a :class:`~.mean_field.rewards.PopulationReward`. A module given is trained in place
    :param method: one of :data:`METHODS`
    :param progress: show a bar
    :param config: fields of the method's configuration, :class:`~.mean_field.members.MCEConfig` or
        :class:`~.mean_field.gcl.GCLConfig`
    :return: an :class:`MCEFit` or a :class:`~.mean_field.gcl.GCLFit`
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
    """See :class:`.mean_field.baselines.Scores`; of predictions from the planted start against the planted flow"""
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
