"""A whole crowd as one environment: the state is where it is, the action is how each of its states moves on."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.random import Generator
from torch import Tensor

from ..batched import Info
from ..horizon import HorizonBatch, first_row
from ..streams import HostStreams
from .graph import GraphReward, Numbers, Objective, as_reward, check_objective, edges, rows_from_logits

LIMIT = 10.0
"""Of logits, in the action space: two moves of one state can differ in probability by a factor of exp(20)."""

Reward = str | GraphReward | Callable[[Tensor, Tensor], Tensor]


class Starts:
    """Where crowds start.

    :param pi0: "dirichlet", one distribution (d,), or observed ones (M, d) of which each episode draws one
    :param d: number of states; None: as many as pi0 has
    :param concentration: of the Dirichlet distribution, the same for all states
    :raises ValueError: no distributions, or not over d states
    """

    def __init__(self, pi0: Literal["dirichlet"] | Numbers, d: int | None, concentration: float) -> None:
        self.rows: np.ndarray[Any, Any] | None = None
        self.concentration = concentration
        if isinstance(pi0, str):
            if pi0 != "dirichlet":
                raise ValueError(f"pi0 is {pi0!r}: it can be 'dirichlet', a distribution, or an array of them")
            if not 0 < concentration < np.inf:
                raise ValueError(f"concentration must lie in (0, inf), got {concentration}")
            assert d is not None
            self.d = d
            return
        rows = np.atleast_2d(np.asarray(pi0, np.float64))
        self.d = rows.shape[1] if d is None else d
        if rows.ndim != 2 or rows.shape[1] != self.d or not len(rows):
            raise ValueError(f"pi0 must be (d,) or (M, d) with d = {self.d} states, got {np.shape(pi0)}")
        wrong = ~(np.abs(rows.sum(1) - 1) <= 1e-6) | (rows < 0).any(1)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"pi0 must hold distributions; row {row} is {rows[row].tolist()}")
        sums = rows.sum(1, keepdims=True)
        self.rows = np.where(np.abs(sums - 1) > 1e-12, rows / sums, rows)  # those of float32 need it

    def draw(self, generator: Generator) -> np.ndarray[Any, Any]:
        """:return: one start (d,); a single known one takes no random number."""
        if self.rows is None:
            return generator.dirichlet(np.full(self.d, self.concentration))
        chosen: np.ndarray[Any, Any] = self.rows[0 if len(self.rows) == 1 else int(generator.random() * len(self.rows))]
        return chosen


class MeanFieldPopulationBatch(HorizonBatch):
    """``N`` crowds that move on a graph, as tensors.

    Observations (N, d + 1) are the crowd pi and the share n / horizon of time that has gone. Actions (N, d * d) are
    logits of the rows of P, whose softmax over the edges of the graph says where the members in each state go:
    pi' = P^T pi. Rewards are a sum over states, see :mod:`.graph`:

    - ``objective="population"``: sum_i pi_i r_i, the welfare of all. Its optimum is the planner's, which is *not* a
      Nash equilibrium of the members, except for rewards without congestion or with ``log_congestion``.
    - ``objective="potential"``: its optimum is a Nash equilibrium.

    Episodes terminate after ``horizon`` steps. ``info`` holds ``P`` (N, d, d), ``pi_next`` (N, d) and
    ``reward_per_state`` (N, d).

    :param num_envs: N
    :param reward: see :func:`headway.envs.mean_field.graph.as_reward`
    :param num_states: d; None: as many as pi0 or the graph has, else 15 (as in arXiv 1711.03156)
    :param horizon: steps, 15 in that paper
    :param objective: see above
    :param pi0: see :class:`Starts`
    :param concentration: see :class:`Starts`
    :param graph: see :func:`headway.envs.mean_field.graph.edges`
    :param device: where the tensors are
    :param dtype: of everything
    :param autoreset_mode: SAME_STEP or DISABLED, see :class:`HorizonBatch`
    :param parameters: of a reward given by name
    :raises ValueError: a reward, objective, start or graph that cannot be; the message says which
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        reward: Reward = "quadratic",
        num_states: int | None = None,
        horizon: int = 15,
        objective: Objective = "population",
        pi0: Literal["dirichlet"] | Numbers = "dirichlet",
        concentration: float = 1.0,
        graph: Numbers | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        **parameters: Any,
    ) -> None:
        if horizon < 1 or horizon != int(horizon):
            raise ValueError(f"horizon must be at least 1, got {horizon}: a whole number of steps")
        super().__init__(num_envs, horizon, device, dtype, autoreset_mode)
        self.reward, self.objective = as_reward(reward, **parameters), check_objective(objective)
        self.starts = Starts(pi0, _number_of_states(num_states, pi0, graph), concentration)
        d = self.num_states = self.starts.d
        self.graph = edges(graph, d, self.device)
        precision: Any = np.float64 if dtype == torch.float64 else np.float32
        self._set_spaces(spaces.Box(0.0, 1.0, (d + 1,), precision), spaces.Box(-LIMIT, LIMIT, (d * d,), np.float32))
        self._streams = HostStreams(num_envs)
        self._registers["pi"] = torch.full((num_envs, d), 1 / d, dtype=dtype, device=self.device)
        P = self._registers["pi"].unsqueeze(1).expand(-1, d, -1)
        self._earned(self._registers["pi"], P)  # a reward of another size, or without a potential, is refused here

    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        self._streams.seed(seeds, rows)

    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        chosen = np.flatnonzero(rows).tolist()
        drawn = self._streams.each(chosen, self.num_states, self.starts.draw)
        pi = torch.from_numpy(drawn).to(self.device, self.dtype)
        self._registers["pi"] = torch.where(mask.unsqueeze(1), pi, self._registers["pi"])

    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        d, pi = self.num_states, self._registers["pi"]
        P = rows_from_logits(actions.to(self.dtype).view(-1, d, d), self.graph)
        rewards, per_state = self._earned(pi, P)
        if not rewards.is_cuda and not rewards.isfinite().all():  # asking a GPU would wait for it
            self._refuse(actions, rewards)
        ahead = torch.bmm(pi.unsqueeze(1), P).squeeze(1)
        if not ahead.is_cuda and not ahead.isfinite().all():  # the reward need not depend on P
            self._refuse(actions, ahead.sum(1))
        pi = self._registers["pi"] = ahead
        return rewards, {"P": P, "pi_next": pi.clone(), "reward_per_state": per_state}

    @torch.no_grad()
    def _earned(self, pi: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        per_state = self.reward.reward_per_state(pi, P)
        if self.objective == "potential":
            return self.reward.potential(pi, P), per_state
        return (pi * per_state).sum(-1), per_state

    def _refuse(self, actions: Tensor, rewards: Tensor) -> None:
        row = int((~rewards.isfinite()).nonzero()[0])
        if not actions[row].isfinite().all():
            raise ValueError(f"actions must be finite logits, row {row} is {actions[row].tolist()}")
        pi = self._registers["pi"][row].tolist()
        raise ValueError(f"the reward of row {row} is {float(rewards[row])}, for the crowd {pi}: it must be finite")

    def _observed(self) -> Tensor:
        share = (self._registers["times"] / self.horizon).to(self.dtype)
        # the mass of a crowd is 1 up to rounding, which must not leave the space
        return torch.cat((self._registers["pi"].clamp(max=1), share.unsqueeze(1)), 1)

    def np_random_of(self, row: int) -> Generator:
        """:return: a generator that stands where the row's stream of starts stands."""
        return self._streams.generator(row)

    def set_np_random_of(self, row: int, generator: Generator) -> None:
        """Put the row's stream of starts where a generator stands."""
        self._streams.put(row, generator)

    def _by_row(self) -> dict[str, Tensor]:
        return {**super()._by_row(), "streams": self._streams.state}

    def like(self, num_envs: int) -> "MeanFieldPopulationBatch":
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        return MeanFieldPopulationBatch(
            num_envs,
            reward=self.reward,
            num_states=self.num_states,
            horizon=self.horizon,
            objective=self.objective,
            pi0="dirichlet" if self.starts.rows is None else self.starts.rows.tolist(),
            concentration=self.starts.concentration,
            graph=self.graph,
            device=self.device,
            dtype=self.dtype,
            autoreset_mode=self.metadata["autoreset_mode"],
        )


class MeanFieldPopulationEnv(gym.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
    """One crowd that moves on a graph: one row of a :class:`MeanFieldPopulationBatch`, in float64.

    :param options: as for :class:`MeanFieldPopulationBatch`
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, **options: Any) -> None:
        fixed = {"dtype": torch.float64, "autoreset_mode": AutoresetMode.DISABLED}
        self.batch = MeanFieldPopulationBatch(1, **{**fixed, **options})
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``."""
        super().reset(seed=seed)
        self.batch.set_np_random_of(0, self.np_random)
        obs, info = self.batch.reset()
        state = self.batch.np_random_of(0).bit_generator.state["state"]
        bits = self.np_random.bit_generator
        bits.state = {**bits.state, "state": state}
        return np.array(obs[0].cpu().numpy()), first_row(info)

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``.

        :raises ValueError: the action has another shape, or is not finite
        """
        actions = torch.from_numpy(np.array(action)).unsqueeze(0).to(self.batch.device)
        obs, reward, terminated, _, info = self.batch.step(actions)
        del info["final_obs"]
        return np.array(obs[0].cpu().numpy()), reward.item(), bool(terminated), False, first_row(info)

    def state(self) -> dict[str, Any]:
        """See :meth:`HorizonBatch.state`; ``np_random`` is part of it."""
        self.batch.set_np_random_of(0, self.np_random)
        return self.batch.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """See :meth:`HorizonBatch.load_state`."""
        self.batch.load_state(state)
        self.np_random = self.batch.np_random_of(0)


def _number_of_states(given: int | None, pi0: Any, graph: Numbers | None) -> int | None:
    """:return: d, or None where pi0 tells."""
    if given is not None and given < 1:
        raise ValueError(f"num_states must be at least 1, got {given}")
    if given is not None or not isinstance(pi0, str):
        return given
    return 15 if graph is None else len(graph)
