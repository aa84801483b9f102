"""One member of a crowd that goes its own way: an ordinary environment, once the flow of the others is fixed."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ..batched import Info
from ..horizon import HorizonBatch
from ..schema import array, group, whole
from ..splitmix import start, uniforms, uniforms_of
from ..vector import NumpyVectorEnv
from .dynamics import flow
from .game import MFGame
from .library import make_game
from .sweeps import Sweeps

Illegal = Literal["error", "random"]
Flow = Tensor | np.ndarray[Any, Any]


def game_of(game: str | MFGame, parameters: dict[str, Any], device: torch.device | str | None = None) -> MFGame:
    """Find the game that is meant.

    :param game: its name, or itself
    :param parameters: for :func:`headway.envs.mean_field.make_game`
    :param device: where to make it; None: the CPU
    :return: the game
    :raises ValueError: see :func:`~headway.envs.mean_field.make_game`; parameters for a game that is made already; or
        a batch of games
    """
    if isinstance(game, str):
        game = make_game(game, device=device or "cpu", **parameters)
    elif parameters:
        raise ValueError(
            f"{', '.join(parameters)}: parameters are for a game given by name, {game.name} is made already"
        )
    if game.batch:
        raise ValueError(f"{game.name} is a batch of {game.batch} games: take one of them")
    return game


# ---- observations ----------------------------------------------------------------------------------------------------


class Encoder:
    """Observations of a member: where it is, one-hot by coordinate (x, then y on a grid); the time, one-hot of H + 1;
    and, if it sees the crowd, the masses of all populations then.

    :param game: the game
    :param population_aware: whether it sees the crowd
    :param device: where to encode
    """

    def __init__(self, game: MFGame, population_aware: bool = False, device: torch.device | str | None = None) -> None:
        device = game.device if device is None else device
        sizes = [size for size in game.grid or (game.S,) if size > 1] or [1]
        states = torch.arange(game.S, device=device)
        places = [states % sizes[0], sizes[0] + states // sizes[0]] if len(sizes) == 2 else [states]
        self.time_offset = sum(sizes)
        table = torch.zeros(game.S, self.time_offset + game.H + 1, dtype=torch.float32, device=device)
        self.places = table.scatter_(1, torch.stack(places, 1), 1.0)
        self.crowd_size = game.n_pop * game.S if population_aware else 0
        self.size = table.shape[1] + self.crowd_size

    @property
    def space(self) -> spaces.Box:
        """Where observations lie."""
        return spaces.Box(0.0, 1.0, (self.size,), np.float32)

    def __call__(self, states: Tensor, times: Tensor, crowds: Tensor | None = None) -> Tensor:
        """Encode.

        :param states: (N,) int64
        :param times: (N,) int64
        :param crowds: masses then, (N, n_pop * S) float32, for a member that sees them
        :return: (N, D) float32
        """
        obs = self.places.index_select(0, states)
        obs.scatter_(1, (times + self.time_offset).unsqueeze(1), 1.0)
        return obs if crowds is None else torch.cat((obs, crowds), 1)


def encode(game: MFGame, states: Tensor, times: Tensor, mu: Tensor | None = None) -> Tensor:
    """Encode what a member observes.

    :param game: the game
    :param states: where it is, (N,) int64
    :param times: when, (N,) int64, 0 to H
    :param mu: the flow (n_pop, H + 1, S), for members that see the crowd: its masses are appended
    :return: (N, D) float32; one-hot coordinates, one-hot time [, masses]
    :raises ValueError: a state or time that the game does not have, or a flow that is none
    """
    for name, index, size in (("states", states, game.S), ("times", times, game.H + 1)):
        check_range(f"{name} of {game.name}", index, size)
    encoder = Encoder(game, mu is not None)
    return encoder(states, times, None if mu is None else crowds_by_time(one_flow(game, mu)).index_select(0, times))


def one_flow(game: MFGame, mu: Flow) -> Tensor:
    """:return: a flow (n_pop, H + 1, S) of this game, checked; a ValueError for a batch of them too."""
    checked = game.check_flow(torch.as_tensor(mu))
    if checked.ndim != 3:
        raise ValueError(f"one flow (n_pop, H + 1, S) of {game.name} is needed, got {tuple(checked.shape)}")
    return checked


def crowds_by_time(mu: Tensor) -> Tensor:
    """:return: what members see of a flow (n_pop, H + 1, S), (H + 1, n_pop * S) float32."""
    return mu.movedim(1, 0).flatten(1).float()


def check_range(what: str, numbers: Tensor, size: int) -> None:
    """Refuse numbers that are not 0 to size - 1."""
    low, high = map(int, numbers.aminmax()) if numbers.numel() else (0, 0)
    if low < 0 or high >= size:
        raise ValueError(f"{what} are 0 to {size - 1}, got {low} to {high}")


# ---- a game and a flow as tables -------------------------------------------------------------------------------------


def cumulative(p: Tensor) -> Tensor:
    """:return: running sums of the last dimension, and 2 from where nothing is left, lest rounding leave a gap at 1."""
    sums = p.cumsum(-1)
    return sums.masked_fill(sums >= sums[..., -1:] * (1 - 1e-12), 2.0)


def moves_of_member(game: MFGame, mu: Tensor, population: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lay out where a member can get to.

    :param game: the game
    :param mu: the flow, or any crowds (n_pop, T, S) in order of time
    :param population: which one it belongs to
    :return: the row (S, A) of the table that an action leads to; successors (R, K) of each row; their
        :func:`cumulative` probabilities (T or 1, R, K), None if there is but one
    """
    S, A = game.S, game.A
    if game.post is not None:
        if game.noise_p is None:
            return game.post, torch.arange(S, device=game.device).unsqueeze(1), None
        assert game.noise_idx is not None
        p = game.noise_p if game.noise_p.ndim == 2 else game.noise_p.expand(game.n_pop, -1, -1)[population]
        return game.post, game.noise_idx, cumulative(p.to(game.dtype)).unsqueeze(0)
    assert game.succ_idx is not None
    rows = torch.arange(S * A, device=game.device).view(S, A)
    if game.succ_p is not None:
        p = game.succ_p if game.succ_p.ndim == 3 else game.succ_p.expand(game.n_pop, -1, -1, -1)[population]
        p = p.unsqueeze(0)
    else:
        assert game.transition is not None
        crowd = mu[:, : game.H].movedim(1, 0)  # (T, n_pop, S)
        p = game.transition(torch.arange(len(crowd), device=game.device).view(-1, 1, 1), crowd)
        p = p.expand(len(crowd), game.n_pop, *game.succ_idx.shape)[:, population]
    return rows, game.succ_idx.flatten(0, 1), cumulative(p.to(game.dtype).flatten(1, 2))


class MemberTables:
    """Everything a member's step looks up, once the flow is fixed.

    :param game: the game
    :param mu: the flow, (n_pop, H + 1, S)
    :param population: which one the member belongs to
    :param device: where the tables are
    """

    @torch.no_grad()
    def __init__(self, game: MFGame, mu: Tensor, population: int, device: torch.device) -> None:
        sweeps = Sweeps(game)
        found = sweeps.rewards(sweeps.layout.inward(mu, 2))
        rewards = found.state[..., population].unsqueeze(2).expand(-1, -1, game.A)
        if found.action is not None:
            rewards = rewards + found.action[..., population]
        rows, successors, probabilities = moves_of_member(game, mu, population)
        self.S, self.A, self.K = game.S, game.A, successors.shape[1]
        self.mu = mu.clone()  # the tables stay those of this flow, whatever its owner does to it
        self.rewards = rewards.contiguous().to(device)  # (H, S, A)
        self.final = None if game.terminal is None else found.final[:, population].contiguous().to(device)
        self.rows, self.successors = rows.contiguous().to(device), successors.contiguous().to(device)
        self.cumulative = None if probabilities is None else probabilities.contiguous().to(device)
        self.start = cumulative(game.mu0[population]).to(device)
        self.crowds = crowds_by_time(mu).to(device)

    @property
    def steady(self) -> bool:
        """Whether moves are the same at all times."""
        return self.cumulative is None or len(self.cumulative) == 1

    @cached_property
    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The tables on the host, for steps of a single member."""
        names = ("rewards", "final", "rows", "successors", "cumulative", "start", "crowds")
        parts = {name: getattr(self, name) for name in names}
        return {name: part.cpu().numpy() for name, part in parts.items() if part is not None}


def check_population(game: MFGame, population: int) -> int:
    """:return: the population, if the game has it; a ValueError if not."""
    if not 0 <= population < game.n_pop:
        raise ValueError(f"population is {population}: {game.name} has {game.n_pop}, numbered from 0")
    return population


def check_illegal(illegal: str) -> Illegal:
    """:return: what is done with illegal actions, if it is known; a ValueError if not."""
    if illegal not in get_args(Illegal):
        raise ValueError(f"illegal is {illegal!r}: it can be {' or '.join(map(repr, get_args(Illegal)))}")
    return illegal  # type: ignore[return-value]


# ---- many members ----------------------------------------------------------------------------------------------------


class MeanFieldAgentBatch(HorizonBatch):
    """``N`` members of one population, each by itself among a crowd whose flow is fixed, as tensors.

    Observations are those of :func:`encode`; actions (N,) are the game's. A member earns r_state + r_action at each of
    its H decisions, and the terminal reward with the last; a regulariser's bonus belongs to a policy and is not paid.
    Episodes terminate after H decisions. ``info`` tells what goes with ``obs``: ``action_mask`` (N, A), ``state`` (N,)
    and ``time`` (N,); :attr:`final_info` has the same for ``final_obs``.

    :param num_envs: N
    :param game: a game, or the name of one
    :param population: which one the members belong to
    :param mean_field: the flow (n_pop, H + 1, S); None: that of the uniform policy
    :param population_aware: whether members see the crowd
    :param illegal: what becomes of an action that is not legal: "error" raises (and, on a GPU, waits for it at every
        step), "random" takes a legal one instead, each equally likely
    :param device: where the tensors are; None: where the game is
    :param dtype: of rewards
    :param autoreset_mode: SAME_STEP or DISABLED, see :class:`HorizonBatch`
    :param parameters: of a game given by name
    :raises ValueError: see :func:`game_of`; no such population; a flow that is none of this game
    """

    def __init__(
        self,
        num_envs: int = 1,
        game: str | MFGame = "crowd_modelling",
        *,
        population: int = 0,
        mean_field: Flow | None = None,
        population_aware: bool = False,
        illegal: Illegal = "error",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        **parameters: Any,
    ) -> None:
        self.game = game = game_of(game, parameters, device)
        super().__init__(num_envs, game.H, device or game.device, dtype, autoreset_mode)
        self.population, self.population_aware = check_population(game, population), population_aware
        self._encoder = Encoder(game, population_aware, self.device)
        self._set_spaces(self._encoder.space, spaces.Discrete(game.A))
        self._legal = game.legal.to(self.device)
        self._illegal = check_illegal(illegal) if not bool(game.legal.all()) else None
        self._registers["states"] = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._registers["streams"] = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._seed(range(num_envs), [None] * num_envs)
        self.set_mean_field(flow(game, game.uniform_policy()) if mean_field is None else mean_field)

    def set_mean_field(self, mu: Flow) -> None:
        """Let the crowd move in another way from now on, in running episodes too.

        :param mu: its flow, (n_pop, H + 1, S)
        :raises ValueError: it is none of this game
        """
        self.tables = MemberTables(self.game, one_flow(self.game, mu), self.population, self.device)

    @property
    def mean_field(self) -> Tensor:
        """The flow of the crowd, (n_pop, H + 1, S)."""
        return self.tables.mu

    def _seed(self, rows: Sequence[int], seeds: Sequence[int | None]) -> None:
        words = torch.tensor([start(seed) for seed in seeds], dtype=torch.int64, device=self.device)
        places = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self._registers["streams"] = self._registers["streams"].index_copy(0, places, words)

    def _begin(self, rows: np.ndarray[Any, Any], mask: Tensor) -> None:
        drawn, streams = uniforms(self._registers["streams"], 1)
        states = torch.searchsorted(self.tables.start, drawn.squeeze(1), right=True)
        for name, value in (("states", states), ("streams", streams)):
            self._registers[name] = torch.where(mask, value, self._registers[name])

    def _move(self, actions: Tensor, times: Tensor) -> tuple[Tensor, Info]:
        if actions.dtype.is_floating_point or actions.dtype is torch.bool:
            raise ValueError(f"actions are numbers of actions, integers; got {actions.dtype}")
        tables, states = self.tables, self._registers["states"]
        actions = self._lawful(actions.long(), states)
        pairs = states * tables.A + actions
        rewards = tables.rewards.view(-1).index_select(0, times * (tables.S * tables.A) + pairs)
        states = tables.rows.view(-1).index_select(0, pairs)
        if tables.cumulative is None:
            states = tables.successors.view(-1).index_select(0, states)
        else:
            places = states if tables.steady else states + times * len(tables.successors)
            drawn, self._registers["streams"] = uniforms(self._registers["streams"], 1)
            chosen = (tables.cumulative.view(-1, tables.K).index_select(0, places) <= drawn).sum(1)
            states = tables.successors.view(-1).index_select(0, states * tables.K + chosen)
        if tables.final is not None:
            rewards = rewards + tables.final.index_select(0, states).masked_fill(times + 1 < self.horizon, 0)
        self._registers["states"] = states
        return rewards, {}

    def _lawful(self, actions: Tensor, states: Tensor) -> Tensor:
        """:return: actions that are legal."""
        if not actions.is_cuda:  # asking a GPU would wait for it
            check_range(f"actions of {self.game.name}", actions, self.game.A)
        if self._illegal is None:
            return actions
        legal = self._legal.index_select(0, states)
        wrong = ~legal.gather(1, actions.unsqueeze(1)).squeeze(1)
        if self._illegal == "error":
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise illegal_action(self.game, int(actions[row]), int(states[row]), f"row {row}")
            return actions
        drawn, self._registers["streams"] = uniforms(self._registers["streams"], 1)
        ranks = legal.cumsum(1)
        other = (ranks <= (drawn * ranks[:, -1:]).long()).sum(1)
        return torch.where(wrong, other, actions)

    def _observed(self) -> Tensor:
        times = self._registers["times"]
        crowds = self.tables.crowds.index_select(0, times) if self.population_aware else None
        return self._encoder(self._registers["states"], times, crowds)

    def told(self) -> Info:
        """See :class:`HorizonBatch`."""
        states = self._registers["states"]
        mask = self._legal.index_select(0, states)
        return {"action_mask": mask, "state": states.clone(), "time": self._registers["times"].clone()}

    def _in_common(self) -> dict[str, Tensor]:
        return {"mean_field": self.mean_field}

    def _limits(self) -> dict[str, int]:
        return super()._limits() | {"states": self.game.S - 1}

    def _load_in_common(self, state: dict[str, Tensor], rows: Tensor | None) -> None:
        if torch.equal(state["mean_field"].to(self.mean_field.device), self.mean_field):
            return
        if rows is not None:
            raise ValueError(
                "the state's rows are among a crowd with another flow, and all rows of a batch are among the same: "
                "give it to set_mean_field() before, or load all rows"
            )
        self.set_mean_field(state["mean_field"])

    def like(self, num_envs: int) -> "MeanFieldAgentBatch":
        """See :class:`~headway.envs.batched.RowSnapshots`; its rows are among the same crowd."""
        return MeanFieldAgentBatch(
            num_envs,
            self.game,
            population=self.population,
            mean_field=self.mean_field,
            population_aware=self.population_aware,
            illegal=self._illegal or "error",
            device=self.device,
            dtype=self.dtype,
            autoreset_mode=self.metadata["autoreset_mode"],
        )


class MemberVectorEnv(NumpyVectorEnv):
    """The array face of a :class:`MeanFieldAgentBatch`, with ``final_info`` as Gymnasium's own vector environments."""

    def __init__(self, batched: MeanFieldAgentBatch) -> None:
        super().__init__(batched, batched.told)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See ``gymnasium.vector.VectorEnv.step``."""
        *found, info = super().step(actions)
        ended = info.get("_final_info")
        if ended is not None:
            for name, part in self.batched.final_info.items():  # type: ignore[attr-defined]
                info["final_info"][name][ended] = part.cpu().numpy()[ended]
        return *found, info


# ---- one member ------------------------------------------------------------------------------------------------------


class MemberEnv(gym.Env[np.ndarray[Any, Any], np.int64]):
    """What single members have in common: whom they are one of, their spaces, and episodes of H decisions.

    :param game: see :class:`MeanFieldAgentEnv`
    :param parameters: see :func:`game_of`
    :param population: see :class:`MeanFieldAgentEnv`
    :param population_aware: see :class:`MeanFieldAgentEnv`
    :param illegal: see :class:`MeanFieldAgentEnv`
    :param device: where observations are encoded; None: where the game is
    :raises ValueError: see :func:`game_of`; no such population, no such way with illegal actions
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        game: str | MFGame,
        parameters: dict[str, Any],
        population: int,
        population_aware: bool,
        illegal: Illegal,
        device: torch.device | str | None = None,
    ) -> None:
        self.game = game_of(game, parameters)
        self.population, self.population_aware = check_population(self.game, population), population_aware
        self._encoder = Encoder(self.game, population_aware, device)
        self.observation_space, self.action_space = self._encoder.space, spaces.Discrete(self.game.A)
        self._illegal = check_illegal(illegal)
        self._time = self.game.H

    def _check_running(self) -> None:
        if self._time >= self.game.H:
            raise ResetNeeded(f"the episode of {self.game.H} decisions is over, or none has begun: call reset()")


class MeanFieldAgentEnv(MemberEnv):
    """One member among a crowd whose flow is fixed: what a row of a :class:`MeanFieldAgentBatch` is, by itself.

    Seeded ``s + i`` it draws what row ``i`` of a batch seeded ``s`` draws. ``info`` holds ``action_mask`` (A,),
    ``state`` and ``time``.

    :param game: a game, or the name of one
    :param population: see :class:`MeanFieldAgentBatch`
    :param mean_field: see :class:`MeanFieldAgentBatch`
    :param population_aware: see :class:`MeanFieldAgentBatch`
    :param illegal: see :class:`MeanFieldAgentBatch`
    :param parameters: of a game given by name
    :raises ValueError: see :class:`MeanFieldAgentBatch`
    """

    def __init__(
        self,
        game: str | MFGame = "crowd_modelling",
        *,
        population: int = 0,
        mean_field: Flow | None = None,
        population_aware: bool = False,
        illegal: Illegal = "error",
        **parameters: Any,
    ) -> None:
        super().__init__(game, parameters, population, population_aware, illegal, "cpu")
        game = self.game
        self._places = self._encoder.places.numpy()
        self._legal = game.legal.cpu().numpy()
        self._always_legal = bool(self._legal.all())
        self._word, self._state = start(None), 0
        self.set_mean_field(flow(game, game.uniform_policy()) if mean_field is None else mean_field)

    def set_mean_field(self, mu: Flow) -> None:
        """See :meth:`MeanFieldAgentBatch.set_mean_field`."""
        self.tables = MemberTables(self.game, one_flow(self.game, mu), self.population, torch.device("cpu"))

    @property
    def mean_field(self) -> Tensor:
        """The flow of the crowd, (n_pop, H + 1, S)."""
        return self.tables.mu

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``."""
        super().reset(seed=seed)
        if seed is not None:
            self._word = start(seed)
        self._state = int(self.tables.arrays["start"].searchsorted(self._draw(), "right"))
        self._time = 0
        return self._observe()

    def _draw(self) -> float:
        (drawn,), self._word = uniforms_of(self._word, 1)
        return drawn

    def step(self, action: np.int64 | int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``.

        :raises ValueError: the action is not legal here
        :raises gymnasium.error.ResetNeeded: the episode is over, or none has begun
        """
        self._check_running()
        arrays, state, time = self.tables.arrays, self._state, self._time
        chosen = self._lawful(int(action))
        reward = float(arrays["rewards"][time, state, chosen])
        row, which = arrays["rows"][state, chosen], 0
        if "cumulative" in arrays:
            table = arrays["cumulative"][0 if self.tables.steady else time, row]
            which = int(table.searchsorted(self._draw(), "right"))
        self._state, self._time = int(arrays["successors"][row, which]), time + 1
        over = self._time == self.game.H
        if over and "final" in arrays:
            reward += float(arrays["final"][self._state])
        obs, info = self._observe()
        return obs, reward, over, False, info

    def _lawful(self, action: int) -> int:
        if not 0 <= action < self.game.A:
            raise illegal_action(self.game, action, self._state)
        if self._always_legal:
            return action
        drawn = self._draw() if self._illegal == "random" else 0.0
        legal = self._legal[self._state]
        if legal[action]:
            return action
        if self._illegal == "error":
            raise illegal_action(self.game, action, self._state)
        return int(np.flatnonzero(legal)[int(drawn * legal.sum())])

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        obs = self._places[self._state].copy()
        obs[self._encoder.time_offset + self._time] = 1
        if self.population_aware:
            obs = np.concatenate((obs, self.tables.arrays["crowds"][self._time]))
        mask = self._legal[self._state].copy()
        return obs, {"action_mask": mask, "state": np.int64(self._state), "time": np.int64(self._time)}

    def state(self) -> dict[str, Any]:
        """See :meth:`HorizonBatch.state`."""
        return {"state": self._state, "time": self._time, "word": self._word, "mean_field": self.mean_field.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See :meth:`HorizonBatch.load_state`."""
        places = {"state": whole(0, self.game.S - 1), "time": whole(0, self.game.H), "word": whole(-(2**63))}
        group({**places, "mean_field": array(tuple(self.mean_field.shape), "float64", "float32")})(state, "the state")
        if not torch.equal(state["mean_field"].to(self.mean_field.device), self.mean_field):
            self.set_mean_field(state["mean_field"])
        self._state, self._time, self._word = (state[name] for name in ("state", "time", "word"))


def illegal_action(game: MFGame, action: int, state: int, where: str = "") -> ValueError:
    """:return: what to raise for an action that does not exist in a state."""
    legal = game.legal[state].nonzero().flatten().tolist()
    return ValueError(
        f"{game.name}: {f'in {where}, ' if where else ''}action {action} is not legal in state {state}; legal are "
        f"{legal}: choose by info['action_mask'], or make the environment with illegal='random'"
    )
