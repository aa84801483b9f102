"""What the members of a crowd want, by maximum causal entropy: how they choose among the others, where that takes the
crowd, and the reward under which what was seen is likeliest.

Ziebart, Bagnell, Dey: "Modeling interaction via the principle of maximum causal entropy", ICML 2010.
Shapes: ``n`` crowds, ``N`` moves, ``d`` states; the joint shares of state and move are pi_i P_ij, (n, N, d, d).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from tqdm import tqdm

from ....envs.mean_field import Entropy, MFGame
from ....envs.mean_field.cohorts import Trajectories
from ...core.config import Count, Positive, Range
from .crowd_models import Fit, FitConfig, Rollout, moved
from .rewards import LinearReward, RewardModel, reward_model

GOOD_GRADIENT = 1e-6
"""A fit whose derivatives are all smaller has converged, however it stopped (our choice)."""


@dataclass(frozen=True, kw_only=True)
class MCEConfig(FitConfig):
    """Maximum causal entropy against the data's flow. Defaults are ours where not said otherwise."""

    tau: Positive = 1.0
    """Temperature of the members' choices; the reward is measured in its unit."""

    l2: Annotated[float, Range(0)] = 1e-5
    """Weight of squared parameters beside the mean negative log-likelihood of a move."""

    terminal: Literal["zero", "learned"] | tuple[float, ...] = "zero"
    """Value of the states at the end: 0 (arXiv 1711.03156), learned, or known."""

    moves: Literal["auto", "seen", "all"] = "auto"
    """Which moves exist: those seen in the data, or all; auto takes those seen where each has a number of its own."""

    flow: Literal["data", "model"] = "data"
    """The crowd among which members choose: the one seen, or the one that follows from the reward. The seen one carries
    the noise of few people into rewards that depend on it."""

    objective: Literal["individual", "planner"] = "individual"
    """Who chooses: each member for itself (Nash), or a planner for all ("Definition 2" of arXiv 1711.03156)."""

    max_iterations: Count = 1000
    """Of L-BFGS."""

    gradient_tolerance: Positive = 1e-9
    """L-BFGS stops where no derivative of its objective is greater."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flow == "model" and self.objective == "planner":
            raise ValueError("MCEConfig.flow='model' goes with objective='individual': leave one of them out")


def soft_policy(rewards: Tensor, final: Tensor, tau: float, moves: Tensor) -> Tensor:
    """V_i^n = tau log sum_j exp((r_ij^n + V_j^(n+1)) / tau), P_ij^n = exp((r_ij^n + V_j^(n+1) - V_i^n) / tau).

    :param rewards: r_ij^n, (…, N, d, d)
    :param final: V^N, (d,)
    :param tau: temperature
    :param moves: which of them exist, (d, d) bool
    :return: log P, -inf for moves that do not exist, (…, N, d, d)
    """
    value, line = final, []
    for reward in reversed(rewards.unbind(-3)):
        scores = ((reward + value.unsqueeze(-2)) / tau).masked_fill(~moves, -torch.inf)
        line.append(scores.log_softmax(-1))
        value = tau * scores.logsumexp(-1)
    return torch.stack(line[::-1], -3)


def externality(reward: RewardModel, joint: Tensor, pi: Tensor, time: Tensor) -> Tensor:
    """What one more member in state i does to all: sum_kj pi_k P_kj dr_kj / dpi_i.

    A planner's optimum is an equilibrium of members who earn this beside their own reward.

    :param reward: r_ij(pi)
    :param joint: pi_k P_kj, (…, d, d)
    :param pi: (…, d)
    :param time: see :class:`RewardModel`
    :return: (…, d)
    """
    if not reward.crowded:
        return torch.zeros_like(pi)
    with torch.enable_grad():
        crowd = pi.detach().requires_grad_()
        total = (joint * reward(crowd, time)).sum()
        (found,) = torch.autograd.grad(total, crowd, create_graph=True)
    return found


class Members(nn.Module):
    """Members of a crowd with a reward, who choose softly best among a crowd that they cannot change.

    :param reward: r_ij(pi)
    :param config: the fit's
    :param moves: which exist, (d, d) bool
    :param horizon: N
    """

    def __init__(self, reward: RewardModel, config: MCEConfig, moves: Tensor, horizon: int) -> None:
        super().__init__()
        d = len(moves)
        known = [0.0] * d if isinstance(config.terminal, str) else config.terminal
        if len(known) != d:
            raise ValueError(f"terminal must be {d} values, one for each state, got {len(known)}")
        final = torch.tensor(known, dtype=torch.float64)
        self.reward, self.config = reward, config
        self.final = nn.Parameter(final, requires_grad=config.terminal == "learned")
        self.register_buffer("moves", moves)
        self.register_buffer("times", torch.arange(horizon, dtype=torch.float64).view(-1, 1) / horizon)
        self.moves: Tensor
        self.times: Tensor

    def log_policy(self, pi: Tensor, joint: Tensor | None = None) -> Tensor:
        """Best respond.

        :param pi: of the crowd at the times of moves, (n, N, d)
        :param joint: of the crowd, (n, N, d, d); what a planner needs beside
        :return: log P, (n, N, d, d)
        """
        if tuple(pi.shape[-2:]) != (wanted := (len(self.times), len(self.final))):
            raise ValueError(
                f"crowds at the times of moves must be (n, N, d) = (n, {wanted[0]}, {wanted[1]}), got {tuple(pi.shape)}"
            )
        rewards = self.reward(pi, self.times)
        if self.config.objective == "planner":
            assert joint is not None
            rewards = rewards + externality(self.reward, joint, pi, self.times).unsqueeze(-1)
        return soft_policy(rewards.expand(*pi.shape, pi.shape[-1]), self.final, self.config.tau, self.moves)

    def settle(self, pi0: Tensor, step: float, sweeps: int) -> tuple[Tensor, Tensor]:
        """Let a crowd move until its members would not have moved otherwise, by a damped fixed point.

        :param pi0: (n, d)
        :param step: share of the way that each sweep goes
        :param sweeps: at most so many
        :return: flow (n, N + 1, d) and P (n, N, d, d)
        :raises RuntimeError: it does not settle
        """
        pi0 = torch.as_tensor(pi0, dtype=torch.float64)
        if pi0.ndim != 2 or pi0.shape[1] != len(self.final):
            raise ValueError(f"starts must be (n, d) = (n, {len(self.final)}), got {tuple(pi0.shape)}")
        if (wrong := ~((pi0.sum(1) - 1).abs() <= 1e-6) | (pi0 < 0).any(1)).any():
            raise ValueError(f"starts must be distributions, row {int(wrong.nonzero()[0])} is {pi0[wrong][0].tolist()}")
        shares = self.moves / self.moves.sum(-1, keepdim=True, dtype=torch.float64)
        matrices = shares.expand(len(pi0), len(self.times), -1, -1)
        joint = moved(pi0, matrices)[:, :-1].unsqueeze(-1) * matrices
        for _ in range(sweeps):
            matrices = self.log_policy(joint.sum(-1), joint).exp()
            flow = moved(pi0, matrices)
            target = flow[:, :-1].unsqueeze(-1) * matrices
            if not self.reward.crowded or (target - joint).abs().max() < 1e-11:
                return flow, matrices
            joint = torch.lerp(joint, target, step)
        if self.config.objective == "individual":  # close by, Newton's steps end what the damped ones only approach
            crowds = Equilibrium(self, pi0, joint.sum(-1))
            found = crowds.solve()
            if crowds.solved:
                matrices = self.log_policy(found).exp()
                return moved(pi0, matrices), matrices
        raise RuntimeError(
            f"the crowd of this reward had not settled after {sweeps} sweeps of step {step} (last change "
            f"{float((target - joint).abs().max()):.2g}): take a smaller step and more sweeps"
        )


class Equilibrium:
    """pi = flow(P(pi)), solved again and again while the reward changes, with its derivative by the parameters.

    Steps are Newton's, with the last derivative by pi that was worth computing; the implicit derivative by parameters,
    (1 - d flow / d pi)^-1 d flow / d theta, is refined with the same one.

    :param members: whose choices move the crowds; no planner's
    :param pi0: where they start, (n, d)
    :param start: a guess of the solution, (n, N, d)
    """

    def __init__(self, members: Members, pi0: Tensor, start: Tensor) -> None:
        self.members, self.pi0, self.pi = members, pi0, start
        self.solved = True
        self._factors: tuple[Tensor, Tensor] | None = None

    def solve(self) -> Tensor:
        """:return: the crowds at the times of moves, (n, N, d); :attr:`solved` says whether to 1e-9."""
        previous = math.inf
        for _ in range(60):
            with torch.no_grad():
                rest = self._flow(self.pi) - self.pi
            worst = float(rest.abs().max())
            if worst < 1e-11:
                break
            if self._factors is None or worst > 0.3 * previous:
                self._linearise()
            self.pi, previous = _better(self._flow, self.pi, self._newton(rest), rest), worst
        self.solved = worst < 1e-9
        flow = self._flow(self.pi)
        if flow.requires_grad:
            flow.register_hook(self._implicit)  # type: ignore[no-untyped-call]
        return flow

    def _flow(self, pi: Tensor) -> Tensor:
        return moved(self.pi0, self.members.log_policy(pi).exp())[:, :-1]

    def _linearise(self) -> None:
        """Take the derivative of the flow by pi at the present pi, crowd by crowd, and factor 1 less that."""
        with torch.enable_grad():
            at = self.pi.detach().requires_grad_()
            flow = self._flow(at)
            size = flow[0].numel()
            basis = torch.eye(size, dtype=at.dtype, device=at.device).view(size, 1, *flow.shape[1:])
            (rows,) = torch.autograd.grad(flow, at, basis.expand(-1, *flow.shape), is_grads_batched=True)
        system = torch.eye(size, dtype=at.dtype, device=at.device) - rows.flatten(2).transpose(0, 1)
        self._factors = torch.linalg.lu_factor(system)

    def _newton(self, rest: Tensor, adjoint: bool = False) -> Tensor:
        assert self._factors is not None
        columns = rest.flatten(1).unsqueeze(-1)
        step: Tensor = torch.linalg.lu_solve(*self._factors, columns, adjoint=adjoint)
        return step.view_as(rest)

    def _implicit(self, slopes: Tensor) -> Tensor:
        """:return: w with w - (d flow / d pi)^T w = slopes, (n, N, d)."""
        with torch.enable_grad():
            at = self.pi.detach().requires_grad_()
            flow = self._flow(at)
        found, previous = torch.zeros_like(slopes), math.inf
        for _ in range(30):
            (back,) = torch.autograd.grad(flow, at, found, retain_graph=True)
            rest = slopes - found + back
            worst = float(rest.abs().max())
            if worst <= 1e-12 * float(slopes.abs().max()):
                break
            if self._factors is None or worst > 0.3 * previous:
                self._linearise()
            found, previous = found + self._newton(rest, adjoint=True), worst
        return found


def _better(function: Callable[[Tensor], Tensor], at: Tensor, newton: Tensor, plain: Tensor) -> Tensor:
    """:return: for each crowd the longest halved Newton step that brings it closer, or a damped plain one if none."""
    with torch.no_grad():
        before = plain.abs().amax((1, 2))
        found, left = at + 0.05 * plain, torch.ones_like(before, dtype=torch.bool)
        for halvings in range(8):
            trial = at + newton / 2**halvings
            closer = left & ((function(trial) - trial).abs().amax((1, 2)) < before)
            found = torch.where(closer.view(-1, 1, 1), trial, found)
            left = left & ~closer
            if not left.any():
                break
    return found


# -- the fit -----------------------------------------------------------------------------------------------------------


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
