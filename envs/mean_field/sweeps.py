"""One pass through a game, forwards or backwards in time, for every game and population of a batch at once.

Tensors are laid out as in :mod:`.moves`, times first: policies (H, S, A, L), flows (H + 1, S, L). Q-values leave out
the reward of being in the state, which is the same for all actions.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .game import MFGame
from .moves import CrowdedWays, Dense, Layout, Ways, ways_of

Tie = Literal["split", "first"]


class Rewards(NamedTuple):
    """What a flow makes everything worth."""

    state: Tensor
    """(H, S, L)"""
    action: Tensor | None
    """(H, S, A, L)"""
    final: Tensor
    """(S, L)"""


class Sweeps:
    """Passes through a game.

    :param game: the game
    :param batch: leading dimensions of what is computed; the game's own broadcast with it
    """

    def __init__(self, game: MFGame, batch: tuple[int, ...] = ()) -> None:
        self.game = game
        try:
            self.batch = np.broadcast_shapes(game.batch, batch)
        except ValueError:
            raise ValueError(
                f"{game.name}: leading dimensions {batch} do not go with those of the game, {game.batch}"
            ) from None
        self.layout = Layout(game, self.batch)
        self._moves = ways_of(game, self.layout)
        self._met: tuple[Tensor, list[Ways]] | None = None
        # In a single small game it is the number of operations that takes time: choices are summed out beforehand.
        self.dense = self._moves if isinstance(self._moves, Dense) and self.layout.columns == 1 else None
        self._chain: tuple[Tensor, Tensor] | None = None
        self.legal = game.legal.unsqueeze(-1)  # (S, A, 1)
        self.mu0 = self.layout.inward(game.mu0, 1)  # (S, L)
        self.times = torch.arange(game.H, device=game.device).view(-1, *[1] * (len(self.layout.lead) + 1))

    @cached_property
    def barrier(self) -> Tensor | None:
        """-inf for illegal actions, 0 for others, (S, A, 1); None if all are legal."""
        if bool(self.legal.all()):
            return None
        return torch.zeros_like(self.legal, dtype=self.game.dtype).masked_fill_(~self.legal, -torch.inf)

    @cached_property
    def nothing(self) -> Tensor:
        """A final reward of 0, (S, L)."""
        return torch.zeros_like(self.mu0)

    def rewards(self, mu: Tensor) -> Rewards:
        """Evaluate the rewards along a flow.

        :param mu: (H + 1, S, L)
        :raises ValueError: one is not finite; the message says where
        """
        game, layout = self.game, self.layout
        crowd, times = layout.crowd(mu[:-1]), self.times
        state = layout.rewards(game.r_state(times, crowd), (game.H,), 1)
        action = None
        if game.r_action is not None:
            action = layout.rewards(game.r_action(times, crowd), (game.H,), 2)
        final = None if game.terminal is None else layout.rewards(game.terminal(layout.crowd(mu[-1])), (), 1)
        for name, part, dims in (("r_state", state, "tx"), ("r_action", action, "txa"), ("terminal", final, "x")):
            if part is None or part.is_cuda or math.isfinite(part.sum().item()):  # asking a GPU would wait for it
                continue
            wrong = ~part.isfinite()
            if wrong.any():  # not only their sum
                places = zip(dims, wrong.nonzero()[0].tolist(), strict=False)
                where = ", ".join(f"{dim} = {place}" for dim, place in places)
                value = str(float(part[wrong][0])).replace("nan", "NaN")
                raise ValueError(f"{game.name}: {name} returned {value}, first at {where}")
        return Rewards(state, action, self.nothing if final is None else final)

    def forward(self, policy: Tensor) -> Tensor:
        """:return: the flow (H + 1, S, L) of a policy (H, S, A, L)."""
        if self.dense is not None:
            crowds = [self.mu0]
            for onward in self._chain_of(policy, self.dense).mT.unbind(0):
                crowds.append(onward @ crowds[-1])
            return torch.stack(crowds)
        flow = policy.new_empty(self.game.H + 1, *self.mu0.shape)
        mu = flow[0] = self.mu0
        met = list[Ways]()
        for t, rows in enumerate(policy.unbind(0)):
            ways = self.ways(t, mu)
            mu = flow[t + 1] = ways.push(rows * mu.unsqueeze(1))
            if isinstance(self._moves, CrowdedWays) and self._moves.can_be_kept:
                met.append(ways)
        if self.game.dynamic:
            self._check_mass(flow)
        self._met = (flow, met) if met else None
        return flow

    def ways(self, t: int, mu: Tensor) -> Ways:
        """:return: how members move at a time when the crowd is at (S, L)."""
        return self._moves.at(t, mu) if isinstance(self._moves, CrowdedWays) else self._moves

    def _check_mass(self, flow: Tensor) -> None:
        """See that a transition, which was tried on one crowd, keeps the mass of those that came up."""
        if flow.is_cuda:  # asking a GPU would wait for it
            return
        tolerance = 1e-6 if flow.dtype == torch.float64 else 1e-3
        wrong = ~(((flow.sum(1) - 1).abs() <= tolerance) & (flow.amin(1) >= -tolerance))  # (H + 1, L)
        if wrong.any():
            t, column = wrong.nonzero()[0].tolist()
            mass = flow[t, :, column]
            raise ValueError(
                f"{self.game.name}: transition led to a crowd of mass {float(mass.sum()):g}, its smallest part "
                f"{float(mass.min()):g}, at t = {t}: rows must be at least 0 and sum to 1 at all times, for all crowds"
            )

    def _chain_of(self, policy: Tensor, dense: Dense) -> Tensor:
        """:return: see :meth:`Dense.chain`; the last one is kept, since flow and values are asked for in turn."""
        if self._chain is None or self._chain[0] is not policy:
            self._chain = policy, dense.chain(policy)
        return self._chain[1]

    def best(self, mu: Tensor, rewards: Rewards) -> tuple[Tensor, Tensor]:
        """Best respond to a flow.

        :return: values of actions (H, S, A, L), -inf where illegal, and of states (H + 1, S, L)
        """
        regulariser = self.game.regulariser
        extra = rewards.action
        if self.barrier is not None:
            extra = self.barrier.expand(self.game.H, -1, -1, -1) if extra is None else extra + self.barrier

        def most(t: int, now: Tensor) -> Tensor:
            return now.amax(1) if regulariser is None else regulariser.best(now, 1)[1]

        return self._backward(mu, rewards.state, extra, rewards.final, most)

    def evaluate(self, policy: Tensor, mu: Tensor, rewards: Rewards) -> tuple[Tensor, Tensor]:
        """Evaluate a policy against a flow.

        :return: values of actions (H, S, A, L), finite where illegal too, and of states (H + 1, S, L)
        """
        own = rewards.state
        if self.game.regulariser is not None:
            own = own + self.game.regulariser.bonus(policy, 2)
        if self.dense is None:
            rows = policy.unbind(0)
            return self._backward(mu, own, rewards.action, rewards.final, lambda t, now: (rows[t] * now).sum(1))
        if rewards.action is not None:
            own = own + (policy * rewards.action).sum(2)
        owns, onward, values = own.unbind(0), self._chain_of(policy, self.dense).unbind(0), [rewards.final]
        for t in reversed(range(self.game.H)):
            values.append(torch.addmm(owns[t], onward[t], values[-1]))
        states = torch.stack(values[::-1])
        q = torch.mm(states[1:].squeeze(2), self.dense.matrix.T).view_as(policy)
        return q if rewards.action is None else q + rewards.action, states

    def _backward(
        self, mu: Tensor, own: Tensor, extra: Tensor | None, final: Tensor, choose: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Go backwards in time.

        :param mu: flow (H + 1, S, L)
        :param own: earned by being in a state, (H, S, L)
        :param extra: earned by an action, (H, S, A, L)
        :param final: (S, L)
        :param choose: the value of a choice among those of actions, (S, A, L) -> (S, L)
        :return: values of actions (H, S, A, L) and of states (H + 1, S, L)
        """
        q = mu.new_empty(self.game.H, self.game.S, self.game.A, mu.shape[-1])
        values = torch.empty_like(mu)
        value = values[-1] = final
        crowds, owns, extras = mu.unbind(0), own.unbind(0), None if extra is None else extra.unbind(0)
        met = self._met[1] if self._met is not None and self._met[0] is mu else None  # on the way forwards
        for t in reversed(range(self.game.H)):
            now = (self.ways(t, crowds[t]) if met is None else met[t]).expect(value)
            if extras is not None and not torch.is_grad_enabled():
                now = torch.add(now, extras[t], out=q[t])  # saves a copy, but gradients could not flow
            else:
                now = q[t] = now if extras is None else now + extras[t]
            value = values[t] = choose(t, now) + owns[t]
        return q, values

    def greedy(self, q: Tensor, tie: Tie, tol: float) -> Tensor:
        """:return: a policy that takes the best of (H, S, A, L) values, or of those of a regularised game."""
        if self.game.regulariser is not None:
            return self.game.regulariser.best(q, 2)[0]
        best = (q >= q.amax(2, keepdim=True) - tol).to(q.dtype)
        if tie == "first":
            return torch.zeros_like(q).scatter_(2, best.argmax(2, keepdim=True), 1)
        return best / best.sum(2, keepdim=True)

    def softmax(self, logits: Tensor) -> Tensor:
        """:return: probabilities (H, S, A, L) of legal actions."""
        if self.barrier is not None:
            logits = logits + self.barrier
        if logits.shape[-1] == 1:  # torch is faster along the last dimension
            return logits.squeeze(-1).softmax(2).unsqueeze(-1)
        return logits.softmax(2)

    def earned(self, joint: Tensor, mu: Tensor, rewards: Rewards) -> Tensor:
        """:return: the value (L,) of a policy on its own flow, from its occupancies (H, S, A, L); no pass is needed."""
        total = (mu[:-1] * rewards.state).sum((0, 1)) + (mu[-1] * rewards.final).sum(0)
        if rewards.action is not None:
            total = total + (joint * rewards.action).sum((0, 1, 2))
        if self.game.regulariser is not None:
            bonus = self.game.regulariser.bonus(self.conditional(joint), 2)
            total = total + (mu[:-1] * bonus).sum((0, 1))
        return total

    def conditional(self, joint: Tensor) -> Tensor:
        """:return: the policy (H, S, A, L) behind occupancies; uniform over legal actions where nobody is."""
        mass = joint.sum(2, keepdim=True)  # not mu, from which it differs by much where both are close to underflow
        legal = self.legal.to(joint.dtype)
        uniform = legal / legal.sum(1, keepdim=True)
        return torch.where(mass > 0, joint / mass, uniform)
