"""Looking ahead without a tree, by lines of actions: what a tree has to beat at the same simulator steps.

Shapes: R roots, P particles of each root, H steps ahead, A action.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...envs import BatchedEnv
from ...envs.row_states import RowStates
from ...envs.splitmix import branches, uniforms
from ..core.config import Config, Count, Positive
from .guides import Guide
from .planners import CHOICE, PARTICLES, Decision, Planner, Roots


@dataclass(frozen=True, kw_only=True)
class ShootingConfig(Config):
    """How lines of actions are tried. All defaults are ours."""

    simulations: Count = 32
    """N: steps of the simulator per decision; what is left over by the division into lines is not used."""

    horizon: Count = 4
    """H: steps of a line, at whose end the value is asked. 1 looks one step ahead, from N candidates."""

    @property
    def particles(self) -> int:
        """P, lines that are tried together."""
        return self.simulations // self.horizon

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.particles:
            raise ValueError(
                f"{type(self).__name__}: {self.simulations} simulations make no line of {self.horizon} steps: "
                "take more of them, or a shorter horizon"
            )


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(ShootingConfig):
    """How lines are tried and averaged."""

    iterations: Count = 2
    """Rounds: of the first, lines are the policy's, of the others, drawn around the average of the last."""

    temperature: Positive = 0.5
    """Lines count by exp(return / temperature), returns in standard deviations of the round's."""

    @property
    def particles(self) -> int:
        """P, lines of a round."""
        return self.simulations // (self.horizon * self.iterations)


@dataclass(frozen=True, kw_only=True)
class SMCConfig(ShootingConfig):
    """How lines are tried and multiplied."""

    temperature: Positive = 0.5
    """Particles are drawn again by exp(advantage / temperature), advantages in standard deviations of the round's."""


class Lines(NamedTuple):
    """What came of P lines of each root."""

    actions: Tensor
    """(R, P, H, A) or (R, P, H)"""
    returns: Tensor
    """With the value at the end, (R, P)"""
    steps: Tensor
    """Of the simulator, (R,)"""


class LinePlanner(Planner):
    """What the planners below share: P lines of each root, stepped together.

    :param cfg: how

    The others as :class:`Planner`.
    """

    def __init__(self, guide: Guide, env: BatchedEnv, roots: int, cfg: ShootingConfig) -> None:
        super().__init__(guide, env, roots, cfg.particles)
        self.horizon = cfg.horizon
        self.states = RowStates(env, roots)
        self._own = torch.arange(roots, device=guide.device)
        self._of = self._own.repeat_interleave(self.each)

    def _begin(self, roots: Roots) -> tuple[Tensor, Tensor]:
        """Put all particles at their roots; :return: what the guide says of these, (R P, ·) and (R P,)"""
        self.states.write(self._own, roots.state)
        self.simulator.load(self.states.read(self._of))
        outputs, values = self.guide.look(roots.obs)
        return outputs[self._of], values[self._of].double()

    def _words(self, roots: Roots, step: int) -> Tensor:
        """:return: a stream for each particle and step, (R P,)"""
        particle = torch.arange(self.each, device=self._of.device).repeat(self.roots)
        return branches(branches(roots.words[self._of], PARTICLES + particle), torch.full_like(particle, step))

    def _roll(self, roots: Roots, lines: Tensor | None) -> Lines:
        """Try lines of actions.

        :param roots: from where
        :param lines: (R P, H, ·); None: as the policy draws them; the first is the policy's mode
        """
        outputs, _ = self._begin(roots)
        alive = torch.ones(len(self._of), dtype=torch.bool, device=outputs.device)
        total, steps = torch.zeros(len(alive), dtype=torch.float64, device=alive.device), torch.zeros_like(alive.long())
        taken, discount = [], 1.0
        for step in range(self.horizon):
            if lines is None:
                actions = self.guide.draw(outputs, self._words(roots, step))
                actions[:: self.each] = self.guide.mode(outputs[:: self.each])
            else:
                actions = lines[:, step]
            taken.append(actions)
            rewards, outputs, values, terminated, truncated = self.step(actions)
            over = terminated | truncated
            ends = over if step + 1 < self.horizon else torch.ones_like(over)
            total += torch.where(alive, discount * (rewards + self.guide.gamma * values * ends), 0.0)
            steps += alive
            alive, discount = alive & ~over, discount * self.guide.gamma
        shape = (self.roots, self.each)
        return Lines(_split(torch.stack(taken, 1), *shape), total.view(shape), steps.view(shape).sum(1))


class ShootingPlanner(LinePlanner):
    """Random shooting: of lines that the policy draws, and of its mode's, the first action of the best."""

    @torch.no_grad()
    def plan(self, roots: Roots, deterministic: bool = True) -> Decision:
        """See :meth:`Planner.plan`."""
        lines = self._roll(roots, None)
        values, best = lines.returns.max(1)
        return Decision(lines.actions[self._own, best, 0], values, lines.steps)


class MPPIPlanner(LinePlanner):
    """Model-predictive path integral control, seeded by the policy and with a value at the end (as in TD-MPC).

    :raises ValueError: a Discrete action space, in which lines have no average
    """

    def __init__(self, guide: Guide, env: BatchedEnv, roots: int, cfg: MPPIConfig) -> None:
        if guide.discrete:
            raise ValueError("MPPI averages actions, which Discrete ones do not allow: take tree, shooting or smc")
        super().__init__(guide, env, roots, cfg)
        self.cfg = cfg

    @torch.no_grad()
    def plan(self, roots: Roots, deterministic: bool = True) -> Decision:
        """See :meth:`Planner.plan`."""
        lines, steps = self._roll(roots, None), torch.zeros_like(self._own)
        for iteration in range(1, self.cfg.iterations + 1):
            steps += lines.steps
            weights = _weights(lines.returns, self.cfg.temperature).view(self.roots, self.each, 1, 1)
            mean = (weights * lines.actions).sum(1)  # (R, H, A)
            std = (weights * (lines.actions - mean.unsqueeze(1)).square()).sum(1).sqrt()
            if iteration == self.cfg.iterations:
                break
            drawn = [
                torch.addcmul(mean[self._of, t], std[self._of, t], self._noise(roots, iteration * self.horizon + t))
                for t in range(self.horizon)
            ]
            drawn_lines = torch.stack(drawn, 1)
            drawn_lines[:: self.each] = mean
            lines = self._roll(roots, drawn_lines)
        return Decision(mean[:, 0], (weights[..., 0, 0] * lines.returns).sum(1), steps)

    def _noise(self, roots: Roots, step: int) -> Tensor:
        zeros = torch.zeros(len(self._of), self.guide.size, device=self._of.device)
        return self.guide.draw(torch.cat((zeros, zeros + 1.0), 1), self._words(roots, step))


class SMCPlanner(LinePlanner):
    """Sequential Monte Carlo (as in SPO, NeurIPS 2024): particles act by the policy, those that do well multiply.

    After each step all are drawn again by exp(A / temperature), A = r + gamma V(s') - V(s); what is done is the first
    action of most that are left.
    """

    def __init__(self, guide: Guide, env: BatchedEnv, roots: int, cfg: SMCConfig) -> None:
        super().__init__(guide, env, roots, cfg)
        self.cfg = cfg
        self._particles = RowStates(env, len(self._of))

    @torch.no_grad()
    def plan(self, roots: Roots, deterministic: bool = True) -> Decision:
        """See :meth:`Planner.plan`."""
        shape, guide = (self.roots, self.each), self.guide
        outputs, values = self._begin(roots)
        alive = torch.ones_like(values, dtype=torch.bool)
        total, steps = torch.zeros_like(values), torch.zeros_like(self._own)
        every = torch.arange(len(self._of), device=values.device)
        origin, discount = every, 1.0
        first = None
        for step in range(self.horizon):
            actions = guide.draw(outputs, self._words(roots, step))
            first = actions if first is None else first
            rewards, outputs, after, terminated, truncated = self.step(actions)
            advantage = torch.where(alive, rewards + guide.gamma * after - values, 0.0)
            total += discount * advantage
            steps += alive.view(shape).sum(1)
            alive, values, discount = alive & ~(terminated | truncated), after, discount * guide.gamma
            weights = _weights(advantage.view(shape), self.cfg.temperature)
            if step + 1 == self.horizon:
                break
            source = self._drawn(weights, roots, step)
            self._particles.write(every, self.simulator.state())
            self.simulator.load(self._particles.read(source))
            outputs, values, alive, total, origin = (p[source] for p in (outputs, values, alive, total, origin))
        assert first is not None
        return self._decide(roots, first, origin, weights, total, steps, deterministic)

    def _drawn(self, weights: Tensor, roots: Roots, step: int) -> Tensor:
        """:return: which particle each becomes, by systematic resampling of each root's, (R P,)"""
        share = uniforms(branches(roots.words, torch.full_like(roots.words, CHOICE + step + 1)), 1)[0]
        comb = (torch.arange(self.each, device=share.device) + share) / self.each
        chosen = torch.searchsorted(weights.cumsum(1), comb, right=True).clamp(max=self.each - 1)
        return (chosen + self._own.unsqueeze(1) * self.each).flatten()

    def _decide(
        self,
        roots: Roots,
        first: Tensor,
        origin: Tensor,
        weights: Tensor,
        total: Tensor,
        steps: Tensor,
        deterministic: bool,
    ) -> Decision:
        mass = torch.zeros_like(weights.flatten()).index_add_(0, origin, weights.flatten()).view(weights.shape)
        if deterministic:
            slot = mass.argmax(1)
        else:
            share = uniforms(branches(roots.words, torch.full_like(roots.words, CHOICE)), 1)[0]
            slot = torch.searchsorted(mass.cumsum(1), share, right=True).squeeze(1).clamp(max=self.each - 1)
        values = self.guide.look(roots.obs)[1].double() + (weights * total.view(weights.shape)).sum(1)
        return Decision(_split(first, self.roots, self.each)[self._own, slot], values, steps)


def _weights(returns: Tensor, temperature: float) -> Tensor:
    """:return: softmax of returns (R, P) in standard deviations over a temperature, (R, P)"""
    std = returns.std(1, correction=0, keepdim=True)
    scaled = torch.where(std > 0, returns / std.clamp_min(1e-12), 0.0)
    return (scaled / temperature).softmax(1)


def _split(part: Tensor, roots: int, each: int) -> Tensor:
    """:return: what is (R P, …) as (R, P, …)"""
    return part.view(roots, each, *part.shape[1:])
