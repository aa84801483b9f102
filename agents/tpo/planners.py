"""Ways of looking ahead with one policy, one value and N simulator steps: by a tree, or by :mod:`.lines`.

Shapes: R roots, K candidates, W simulations at once, A action.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...envs import BatchedEnv
from ...envs.row_states import RowStates
from ...envs.splitmix import branches, uniforms
from ..core.spaces import Obs
from .guides import Guide
from .simulator import Simulator
from .tree import Flags, Numbers, Tree, TreeConfig, Whole

GUMBEL, CHOICE, PARTICLES = 2**32, 2**33, 2**34
"""Branches of a root's random stream, beside those of its candidates."""


class Roots(NamedTuple):
    """Where R decisions are to be made."""

    state: Any
    """Of the environment's rows"""
    obs: Obs
    """As the guide reads them, (R, ·)"""
    words: Tensor
    """A random stream of each, (R,) int64"""


class Decision(NamedTuple):
    """What was found for R roots."""

    actions: Tensor
    """To take, in the policy's scale, (R, A) or (R,) int64"""
    values: Tensor
    """What is expected of them, in the value's unit, (R,)"""
    simulated: Tensor
    """Steps of the simulator, (R,)"""


class Planner(ABC):
    """A way of looking ahead.

    :param guide: policy and value
    :param env: the environment whose rows are copied
    :param roots: R
    :param each: rows of the simulator for each root
    """

    def __init__(self, guide: Guide, env: BatchedEnv, roots: int, each: int) -> None:
        self.guide, self.roots, self.each = guide, roots, each
        self.simulator = Simulator(env, roots * each)

    @abstractmethod
    def plan(self, roots: Roots, deterministic: bool = True) -> Decision:
        """Look ahead.

        :param roots: from where
        :param deterministic: take what looks best, instead of drawing by how good it looks (trees and SMC do that)
        :return: what to do
        """

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Step the simulator by actions of the policy's (B, ·). What is not finite there is the end, and worth nothing.

        :return: rewards in the value's unit (B,) float64; what the guide says of where that led, outputs (B, ·) and
            values (B,) float64, 0 where the episode has terminated; where it has, and where it was truncated, (B,) bool
        """
        guide = self.guide
        outcome = self.simulator.step(guide.to_env(actions))
        rewards = outcome.rewards.to(guide.device).double() / guide.reward_unit
        terminated, truncated = outcome.terminated.to(guide.device), outcome.truncated.to(guide.device)
        outputs, values = guide.look(guide.encode(outcome.obs))
        sound = rewards.isfinite() & values.isfinite()
        rewards, terminated = torch.where(sound, rewards, 0.0), terminated | ~sound
        return rewards, outputs, values.double().masked_fill(terminated, 0.0), terminated, truncated


# -- the tree ----------------------------------------------------------------------------------------------------------


class TreePlanner(Planner):
    """Tree search: every simulation descends to a candidate that was not tried, steps once, and backs up what it met.

    :param cfg: how
    :param reuse: go on with what hangs below the last decision, where that led, bit for bit, to what was foreseen

    The others as :class:`Planner`.

    :raises ValueError: ``reuse`` with a root that is searched by sequential halving, whose schedule begins anew
    """

    def __init__(self, guide: Guide, env: BatchedEnv, roots: int, cfg: TreeConfig, *, reuse: bool = False) -> None:
        if reuse and cfg.root == "gumbel":
            raise ValueError("root is 'gumbel', which cannot go on with a tree: its schedule needs untried candidates")
        super().__init__(guide, env, roots, cfg.wave)
        self.cfg, self.reuse = cfg, reuse
        candidate = torch.zeros((), dtype=torch.int64) if guide.discrete else torch.zeros(guide.size)
        self.tree = Tree(cfg, roots, guide.most(cfg.candidates), candidate.to(guide.device), guide.gamma)
        self.states = RowStates(env, roots * (self.tree.nodes + 1))
        self.schedule = halving(self.tree.candidates, cfg.simulations) if cfg.root == "gumbel" else None
        self._foreseen: Whole | None = None

    @torch.no_grad()
    def plan(self, roots: Roots, deterministic: bool = True) -> Decision:
        """See :meth:`Planner.plan`; the tree is there to be looked at until the next one."""
        tree = self.tree
        self._plant(roots)
        had, simulated = tree.n[tree.base].sum(1), np.zeros_like(tree.base)
        for done in range(0, self.cfg.simulations, self.cfg.wave):
            turns = [had + done + turn < self.cfg.simulations for turn in range(self.cfg.wave)]
            if not turns[0].any():
                break
            simulated += self._simulate(turns, done)
        slots = self._choose(roots.words, deterministic)
        self._foreseen = tree.child[tree.base, slots]
        actions = tree.actions[_tensor(tree.base), _tensor(slots)]
        values, steps = tree.q[tree.base, slots], _tensor(simulated)
        return Decision(actions, _tensor(values).to(actions.device), steps.to(actions.device))

    def _plant(self, roots: Roots) -> None:
        """Make the roots' nodes, where the last trees do not have them."""
        tree = self.tree
        if self._foreseen is None or not self.reuse:
            tree.begin()
        else:
            node = np.maximum(self._foreseen, 0)
            same = (self._foreseen >= 0) & ~tree.over[node] & _array(self.states.equal(_tensor(node), roots.state))
            before, after = tree.keep(np.where(same, node, -1))
            self.states.write(_tensor(after), self.states.read(_tensor(before)))
        nodes = tree.make_nodes(tree.used == 0)
        tree.parent[nodes], tree.depth[nodes] = nodes, 0
        outputs, values = self.guide.look(roots.obs)
        self._fill(nodes, roots.words, outputs, values, np.zeros_like(nodes, np.bool_))
        self.states.write(_tensor(nodes), roots.state)
        if self.schedule is not None:
            shares = uniforms(branches(roots.words, torch.full_like(roots.words, GUMBEL)), tree.candidates)[0]
            self.gumbel = _array(-(-shares.clamp_min(1e-300).log()).log())

    def _fill(self, nodes: Whole, words: Tensor, outputs: Tensor, values: Tensor, over: Flags) -> None:
        tree, cfg = self.tree, self.cfg
        actions, log_prior = self.guide.candidates(outputs, words, tree.candidates, cfg.include_mean)
        dense = cfg.prior == "density" or self.guide.discrete
        prior = _array(log_prior.double().softmax(1)) if dense else 1 / tree.candidates
        tree.words[nodes] = _array(words)
        tree.fill(nodes, actions, prior, _array(values), over)

    def _simulate(self, turns: list[Flags], done: int) -> Whole:
        """Do one wave.

        :param turns: which roots take part in each of its simulations, (R,) each
        :param done: simulations before it
        :return: steps of the simulator, (R,)
        """
        tree = self.tree
        descents = [tree.descend(active, self._first(done + turn)) for turn, active in enumerate(turns)]
        node, slot, known = (np.stack(parts) for parts in zip(*(descent[:3] for descent in descents), strict=True))
        makes, made = known < 0, known
        if makes.any():
            if len(turns) > 1:  # of simulations that came to the same edge the first makes the step, and the node
                order = np.arange(len(turns))[:, None]
                edge = np.where(makes, node * tree.candidates + slot, -1 - order)
                owner = (edge[None] == edge[:, None]).argmax(1)
                new, makes = makes, makes & (owner == order)
            numbers = np.stack([tree.make_nodes(mask) for mask in makes])
            self._expand(numbers.ravel(), node.ravel(), slot.ravel(), makes.ravel())
            made = np.where(known < 0, numbers, known)
            if len(turns) > 1:
                made = np.where(new, np.take_along_axis(numbers, owner, 0), known)
                known = np.where(makes, -1, made)
        for descent, before, arrived in zip(descents, known, made, strict=True):
            tree.back_up(descent._replace(known=before), arrived)
        steps: Whole = makes.sum(0)
        return steps

    def _expand(self, nodes: Whole, parents: Whole, slots: Whole, makes: Flags) -> None:
        """Step from nodes by their candidates, and write down what comes where that is wanted, (B,) each."""
        tree, above, chosen = self.tree, _tensor(parents), _tensor(slots)
        self.simulator.load(self.states.read(above))
        rewards, outputs, values, terminated, truncated = self.step(tree.actions[above, chosen])
        words = branches(_tensor(tree.words[parents]), chosen).to(outputs.device)
        tree.link(nodes, np.where(makes, parents, nodes), slots, _array(rewards))  # others hang at nobody's
        self._fill(nodes, words, outputs, values, _array(terminated | truncated))
        self.states.write(_tensor(nodes), self.simulator.state())

    # -- at the root -------------------------------------------------------------------------------------------------

    def _first(self, simulation: int) -> Whole | None:
        """:return: the candidates of the roots that sequential halving tries next, (R,)"""
        if self.schedule is None:
            return None
        n = self.tree.n[self.tree.base] + self.tree.pending[self.tree.base]
        first: Whole = np.where(n == self.schedule[simulation], self._halved(), -np.inf).argmax(1)
        return first

    def _halved(self) -> Numbers:
        """g + log P + (50 + max n) Q / 10, Q scaled to [0, 1] of the root's candidates.

        :return: what sequential halving goes by, (R, K)
        """
        tree = self.tree
        n = tree.n[tree.base]
        q = np.where(n > 0, tree.q[tree.base], tree.value[tree.base][:, None])
        low, high = q.min(1, keepdims=True), q.max(1, keepdims=True)
        scaled = (q - low) / np.maximum(high - low, 1e-8)
        scores: Numbers = self.gumbel + np.log(tree.prior[tree.base]) + (50.0 + n.max(1, keepdims=True)) * 0.1 * scaled
        return scores

    def _choose(self, words: Tensor, deterministic: bool) -> Whole:
        """:return: of each root the candidate that is decided on, or one drawn by visits, (R,)"""
        tree = self.tree
        n = tree.n[tree.base]
        if not deterministic:
            share = _array(uniforms(branches(words, torch.full_like(words, CHOICE)), 1)[0])
            sums = (n ** (1 / self.cfg.visit_temperature)).cumsum(1)
            drawn: Whole = (sums <= share * sums[:, -1:]).sum(1)
            return np.minimum(drawn, tree.candidates - 1)
        rank = tree.q[tree.base] if self.schedule is None else self._halved()
        among = n > 0 if self.cfg.decide == "value" else n == n.max(1, keepdims=True)
        best: Whole = np.where(among, rank, -np.inf).argmax(1)
        return best


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)


def _array(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def halving(candidates: int, simulations: int) -> list[int]:
    """Sequential halving as a schedule: all candidates are tried equally often, then the better half, and so on.

    :param candidates: K
    :param simulations: N
    :return: the visits that a candidate must have to be tried by each simulation
    """
    rounds = max(1, (candidates - 1).bit_length())
    schedule: list[int] = []
    visits, left = 0, candidates
    while len(schedule) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            schedule += [visits] * left
            visits += 1
        left = max(min(2, candidates), left // 2)
    return schedule[:simulations]
