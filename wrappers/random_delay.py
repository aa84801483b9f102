"""Observations that arrive late, actions that act late, by random numbers of ticks.

The process of Bouteiller, Ramstedt, Beltrame, Pal and Binas, "Reinforcement Learning with Random Delays" (arXiv
2010.02966). In tick ``t`` a step does, in this order:

1. The action of the tick is sent, and reaches the actuator after its delay.
2. The environment moves, by the action selected at the end of the last tick; the first one is the initial action.
3. The newest action that has reached the actuator is selected for the next tick; older ones that come later are lost.
4. What the environment shows is sent: state, reward so far, end of the episode.
5. The newest of what has arrived is returned; if nothing newer has, the same again, one tick older.

So rewards are neither lost nor doubled: a return holds the sum of what happened between the two captures it lies
between. The end of an episode travels like everything else; until it arrives the environment rests. At the start the
first state and the initial action have arrived (our choice; the authors' code fills both channels at random).

Observations are a Dict, with the names of the paper's extension in brackets:

- ``observation``: the environment's, as captured; of a Dict, its parts by their own names, beside the others
- ``action_buffer``: the last K actions sent, newest first, K = longest observation delay + longest action delay + 1
- ``observation_age`` (omega): ticks since it was captured
- ``action_age`` (kappa): age, at capture, of the action selected to act next
- ``applied_action_age`` (beta): age, at capture, of the action that led to it; at least 1
"""

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ..envs import BatchedEnv
from ..envs.batched import Info, Obs, Resettable, RowSnapshots, check_state, require, row_seeds
from ..envs.schema import check_numbers, group
from ..envs.splitmix import start, uniforms, uniforms_of
from .delays import UNIFORMS, Delay, parse

_NEVER = torch.iinfo(torch.int64).max
_STREAMS = (2, 3)  # keys of the random streams of observations and of actions, apart from those of environments

Form = Literal["dict", "flat", "bare"]

DelayLike = str | Delay
"""A law, or the form of one that :func:`headway.wrappers.delays.parse` reads."""


@dataclass(frozen=True)
class DelayedSpaces:
    """The shapes that follow from an environment's spaces and the two laws.

    :param observation: the environment's observation space
    :param action: its action space
    :param observation_delay: the law of observations
    :param action_delay: the law of actions
    """

    observation: spaces.Space[Any]
    action: spaces.Space[Any]
    observation_delay: Delay
    action_delay: Delay

    @property
    def horizon(self) -> int:
        """K, the length of the action buffer: the longest total delay."""
        return self.observation_delay.max + self.action_delay.max + 1

    def shown(self, form: Form) -> spaces.Space[Any]:
        """:return: the space of what is shown.

        :raises ValueError: no such form, or one that these spaces do not have
        """
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}: it can be {', '.join(map(repr, get_args(Form)))}")
        if form == "bare":
            return self.observation
        return self.flat() if form == "flat" else self.augmented()

    def augmented(self) -> spaces.Dict:
        """:return: the space of delayed observations.

        :raises ValueError: parts of the environment's observations have the names of what is added
        """
        inner = self.observation
        shown: dict[str, Any] = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {"observation": inner}
        added: dict[str, spaces.Space[Any]] = {
            "action_buffer": self._buffer(),
            "observation_age": spaces.Discrete(self.observation_delay.max + 1),
            "action_age": spaces.Discrete(self.action_delay.max + 1),
            "applied_action_age": spaces.Discrete(self.action_delay.max + 2),
        }
        taken = sorted(shown.keys() & added.keys())
        if taken:
            raise ValueError(
                f"the environment's observations have parts named {', '.join(taken)}, which delayed ones have too: "
                "rename them in a gymnasium.ObservationWrapper"
            )
        return spaces.Dict(list((shown | added).items()))

    def flat(self) -> spaces.Box:
        """:return: the space of the flat form."""
        if not isinstance(self.observation, spaces.Box) or not isinstance(self.action, spaces.Box):
            raise ValueError(
                f"the flat form needs a Box of observations and a Box of actions, got {self.observation} and "
                f"{self.action}: take the Dict form"
            )
        buffer: Any = self._buffer()
        ages = self.observation_delay.max + self.action_delay.max + 2
        low, high = (
            np.concatenate([side.ravel().astype(np.float32), edge.ravel(), np.full(ages, end, np.float32)])
            for side, edge, end in (
                (self.observation.low, buffer.low, 0.0),
                (self.observation.high, buffer.high, 1.0),
            )
        )
        return spaces.Box(low, high, dtype=np.float32)

    def _buffer(self) -> spaces.Space[Any]:
        if isinstance(self.action, spaces.Box):
            return batch_space(self.action, self.horizon)
        if isinstance(self.action, spaces.Discrete):
            return spaces.MultiDiscrete(
                np.full(self.horizon, self.action.n), start=np.full(self.horizon, self.action.start)
            )
        raise ValueError(f"actions of a {type(self.action).__name__} space cannot be delayed: Box and Discrete can")

    def initial(self, given: Any) -> np.ndarray[Any, Any]:
        """:return: the action in every slot at the start: the one given, else zeros, or what is nearest to them.

        :raises ValueError: the one given is no action of the space
        """
        if isinstance(self.action, spaces.Discrete):
            chosen: Any = self.action.start if given is None else given
        elif given is None:
            chosen = np.clip(0, self.action.low, self.action.high)  # type: ignore[attr-defined]
        else:
            chosen = given
        refusal = ValueError(f"initial_action is {given!r}, which is not in {self.action}")
        try:
            array = np.asarray(chosen, self.action.dtype)
            unchanged = np.allclose(array, np.asarray(chosen, float))
        except (TypeError, ValueError) as cause:
            raise refusal from cause
        if not unchanged or not self.action.contains(array if self.action.shape else array[()]):
            raise refusal
        return array


class _Packet(NamedTuple):
    """What the environment sent in one tick."""

    tick: int
    arrival: int
    obs: Any
    total: float
    kappa: int
    beta: int
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class RandomDelay(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """One environment behind random delays; what happens is described for the module.

    Put it around the time limit, as ``RandomDelay(gymnasium.make(…), …)`` does, not inside: a limit counted in the
    agent's ticks would cut off what is still on its way.

    ``info`` is that of the capture returned. ``info["undelayed"]`` tells, for analysis, what happened in this tick:
    ``reward``, ``terminated``, ``truncated``, ``executed_action``; and ``observation_delay`` and ``action_delay``, the
    delays drawn.

    :param env: the environment
    :param observation_delay: law of observations, or its form: "wifi", "uniform:0-3"
    :param action_delay: law of actions; a delay of 0 still means that an action acts one tick after it was chosen
    :param initial_action: what acts before any action has arrived; None: zeros, or the nearest to them
    :param form: "dict"; "flat", one vector for agents without Dict observations: observation, buffer, one-hot omega,
        one-hot kappa; or "bare", the observation alone, from which an agent cannot tell what it has sent, nor when
    :raises ValueError: the environment is delayed already, its spaces cannot be, or a law is not one
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        observation_delay: DelayLike,
        action_delay: DelayLike,
        initial_action: Any = None,
        form: Form = "dict",
    ) -> None:
        self.observation_delay, self.action_delay = _law(observation_delay), _law(action_delay)
        RecordConstructorArgs.__init__(self, **_as_text(self, initial_action), form=form)
        gym.Wrapper.__init__(self, env)
        _refuse_delayed(env)
        shapes = DelayedSpaces(env.observation_space, env.action_space, self.observation_delay, self.action_delay)
        self.horizon, self.form = shapes.horizon, form
        self.observation_space = shapes.shown(form)
        _warn_of_short_episodes(self.horizon, None if env.spec is None else env.spec.max_episode_steps)
        self._initial = shapes.initial(initial_action)
        self._longest = (self.observation_delay.max, self.action_delay.max)
        self._streams = [start(None, key) for key in _STREAMS]
        self._memory = [0, 0]
        self._needs_reset = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``; no delay is drawn."""
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._streams = [start(seed, key) for key in _STREAMS]
        self._tick = 0
        self._total = self._delivered = 0.0
        self._ended = self._needs_reset = False
        slowest_obs, slowest_action = self._longest
        # newest first: the actions sent, when they reach the actuator, and what the environment sent
        self._sent = np.stack([self._initial] * self.horizon)
        self._arrivals = deque([-1] * (slowest_action + 1), maxlen=slowest_action + 1)
        self._kappa = 0
        first = _Packet(-1, -1, deepcopy(obs), 0.0, 0, 1, False, False, dict(info))
        self._packets = deque([first], maxlen=slowest_obs + 1)
        return self._shown(first), dict(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``.

        :raises gymnasium.error.ResetNeeded: there was no ``reset``, or none since the end of the episode arrived
        """
        if self._needs_reset:
            raise ResetNeeded("call reset() before the first step(), and after the end of an episode")
        t = self._tick
        w, k = self._draw(0, self.observation_delay), self._draw(1, self.action_delay)
        executed = self._sent[self._kappa]
        self._sent = np.concatenate((np.asarray(action, self._sent.dtype)[None], self._sent[:-1]))
        self._arrivals.appendleft(t + k)
        happened = self._move(executed, w)
        self._tick += 1
        packet = next(packet for packet in self._packets if packet.arrival <= t)
        reward = packet.total - self._delivered
        self._delivered = packet.total
        self._needs_reset = packet.terminated or packet.truncated
        info = {**packet.info, "undelayed": {**happened, "observation_delay": w, "action_delay": k}}
        return self._shown(packet), reward, packet.terminated, packet.truncated, info

    def _move(self, executed: Any, w: int) -> dict[str, Any]:
        """Steps 2 to 4 of a tick, unless the environment rests; :return: what happened in it."""
        t, beta = self._tick, 1 + self._kappa
        self._kappa = next(age for age, arrival in enumerate(self._arrivals) if arrival <= t)
        reward, terminated, truncated = 0.0, False, False
        if not self._ended:
            action = executed.copy() if executed.shape else executed[()]
            obs, given, over, cut, info = self.env.step(action)
            reward, terminated, truncated = float(given), bool(over), bool(cut)
            self._total += reward
            self._ended = terminated or truncated
            shown = (deepcopy(obs), self._total, self._kappa, beta, terminated, truncated, dict(info))
            self._packets.appendleft(_Packet(t, t + w, *shown))
        return {"reward": reward, "terminated": terminated, "truncated": truncated, "executed_action": executed}

    def _draw(self, channel: int, law: Delay) -> int:
        """Draw a channel's delay of this tick; every tick draws both, used or not."""
        u, self._streams[channel] = uniforms_of(self._streams[channel], UNIFORMS)
        delay, self._memory[channel] = law.draw_one(u, self._tick, self._memory[channel])
        if not 0 <= delay <= self._longest[channel]:
            raise _beyond(law, delay)
        return delay

    def _shown(self, packet: _Packet) -> Any:
        """The delayed observation, at the beginning of tick ``self._tick``."""
        if self.form == "bare":
            return deepcopy(packet.obs)
        omega = self._tick - 1 - packet.tick
        if self.form == "flat":
            ages = np.zeros(sum(self._longest) + 2, np.float32)
            ages[omega] = ages[self._longest[0] + 1 + packet.kappa] = 1
            parts = (np.ravel(packet.obs), self._sent.ravel(), ages)
            return np.concatenate(parts, dtype=np.float32, casting="same_kind")
        obs = deepcopy(packet.obs)
        return {
            **(obs if isinstance(self.env.observation_space, spaces.Dict) else {"observation": obs}),
            "action_buffer": self._sent.copy(),
            "observation_age": np.int64(omega),
            "action_age": np.int64(packet.kappa),
            "applied_action_age": np.int64(packet.beta),
        }


def _law(delay: DelayLike) -> Delay:
    law = parse(delay) if isinstance(delay, str) else delay
    if not isinstance(law, Delay):
        raise ValueError(f"{delay!r} is no law of delays: give one of headway.wrappers.delays, or 'constant:2', 'wifi'")
    return law


def _as_text(env: "RandomDelay | BatchedRandomDelay", initial_action: Any) -> dict[str, Any]:
    """:return: the arguments that a spec records, in a form that JSON can hold."""
    return {
        "observation_delay": str(env.observation_delay),
        "action_delay": str(env.action_delay),
        "initial_action": None if initial_action is None else np.asarray(initial_action).tolist(),
    }


def _beyond(law: Delay, delay: int) -> ValueError:
    return ValueError(f"the law {law} drew a delay of {delay} ticks, outside 0 to its max of {law.max}")


def _refuse_delayed(env: Any) -> None:
    while env is not None:
        if isinstance(env, (RandomDelay, BatchedRandomDelay)):
            raise ValueError("the environment is delayed already: put the sum of both delays into one RandomDelay")
        inner = [getattr(env, name, None) for name in ("env", "venv", "batched")]
        inner += list(getattr(env, "envs", ()))[:1]
        env = next((part for part in inner if part is not None), None)


def _warn_of_short_episodes(horizon: int, limit: int | None) -> None:
    if limit is not None and horizon > limit:
        warnings.warn(
            f"the action buffer holds {horizon} actions, for the longest delays, but episodes end after {limit} steps: "
            "in most of an episode actions come too late, or nothing of it is seen",
            UserWarning,
            stacklevel=3,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to the calling thread: its others would go on spinning while the physics steps on its own threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BatchedRandomDelay(BatchedEnv):
    """Many rows behind random delays, on one device and without a loop over rows.

    Row ``i`` is what :class:`RandomDelay` around a single environment is, delays included, given the same seed. While
    the end of a row's episode is on its way the row rests: its environment is stepped with the others, but what it does
    goes nowhere. (One that draws random numbers in its steps, not only in resets, has then drawn some more.)

    ``info["undelayed"]`` is what :class:`RandomDelay` tells there, (N, …) each, and what else the batch told in this
    tick, such as parts of rewards. The state includes what is on its way.

    :param env: the batch; it must leave finished rows alone (``autoreset_mode=AutoresetMode.DISABLED``) and restart
        those of a ``reset_mask``, unless ``terminal_delivery`` is "immediate"
    :param observation_delay: see :class:`RandomDelay`
    :param action_delay: see :class:`RandomDelay`
    :param initial_action: see :class:`RandomDelay`
    :param form: see :class:`RandomDelay`
    :param terminal_delivery: "delayed": the end travels like everything else. "immediate": it arrives in the tick it
        happens in, for batches that restart rows by themselves; total rewards stay right, the last ages do not
    :raises ValueError: see :class:`RandomDelay`; or the batch restarts rows by itself
    """

    def __init__(
        self,
        env: BatchedEnv,
        observation_delay: DelayLike,
        action_delay: DelayLike,
        initial_action: Any = None,
        form: Form = "dict",
        terminal_delivery: Literal["delayed", "immediate"] = "delayed",
    ) -> None:
        _refuse_delayed(env)
        self.observation_delay, self.action_delay = _law(observation_delay), _law(action_delay)
        if terminal_delivery not in ("delayed", "immediate"):
            raise ValueError(f"terminal_delivery is {terminal_delivery!r}: it can be 'delayed' or 'immediate'")
        self._immediate = terminal_delivery == "immediate"
        self._resets = env.metadata.get("autoreset_mode") is AutoresetMode.DISABLED
        if not (self._immediate or self._resets):
            raise ValueError(
                "the batch restarts finished rows by itself, while the end of their episodes would still be on its "
                "way: make it with autoreset_mode=AutoresetMode.DISABLED, put a RandomDelay around each environment "
                "before they are batched, or take terminal_delivery='immediate'"
            )
        if not isinstance(env.single_observation_space, spaces.Box):
            raise ValueError(
                f"observations of {env.single_observation_space} cannot be delayed in a batch, a Box can: "
                "put a RandomDelay around each environment before they are batched"
            )
        self._options: dict[str, Any] = {
            "observation_delay": self.observation_delay,
            "action_delay": self.action_delay,
            "initial_action": initial_action,
            "form": form,
            "terminal_delivery": terminal_delivery,
        }
        self.env, self.num_envs, self.device, self.form = env, env.num_envs, env.device, form
        shapes = DelayedSpaces(
            env.single_observation_space, env.single_action_space, self.observation_delay, self.action_delay
        )
        self.horizon = shapes.horizon
        self.single_observation_space = shapes.shown(form)
        self.single_action_space = env.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = env.action_space
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]
        self.render_mode = env.render_mode
        self.spec = _delayed_spec(env.spec, _as_text(self, initial_action), form, terminal_delivery)
        _warn_of_short_episodes(self.horizon, getattr(env, "max_episode_steps", None))
        self._initial = torch.as_tensor(shapes.initial(initial_action), device=self.device)
        self._registers = self._make_registers(env.single_observation_space)
        self._seed([None] * self.num_envs, range(self.num_envs))

    def _make_registers(self, space: spaces.Box) -> dict[str, Tensor]:
        """Everything that changes, by name; (N, …), shift registers newest first."""
        rows, depth = self.num_envs, self.observation_delay.max + 1
        whole: Any = {"dtype": torch.int64, "device": self.device}
        real: Any = {"dtype": torch.float64, "device": self.device}
        obs_type = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        return {
            "streams": torch.zeros(rows, 2, **whole),
            "memory": torch.zeros(rows, 2, **whole),
            "tick": torch.zeros(rows, **whole),
            "sent": self._initial.expand(rows, self.horizon, *self._initial.shape).clone(),
            "arrivals": torch.zeros(rows, self.action_delay.max + 1, **whole),
            "kappa": torch.zeros(rows, **whole),
            "obs": torch.zeros(rows, depth, *space.shape, dtype=obs_type, device=self.device),
            "facts": torch.zeros(rows, depth, 5, **whole),  # arrival, kappa, beta, terminated, truncated
            "total": torch.zeros(rows, depth, **real),
            "delivered": torch.zeros(rows, **real),
            "ended": torch.zeros(rows, dtype=torch.bool, device=self.device),
        }

    def _seed(self, seeds: Sequence[int | None], rows: Sequence[int]) -> None:
        """Start the delays' random streams of some rows, from entropy where the seed is None."""
        words = [[start(seed, key) for key in _STREAMS] for seed in seeds]
        places = torch.tensor(rows, dtype=torch.int64, device=self.device)
        streams = torch.tensor(words, dtype=torch.int64, device=self.device).view(-1, 2)
        self._registers["streams"] = self._registers["streams"].index_copy(0, places, streams)

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`; no delay is drawn.

        ``options={"reset_mask": (N,) bool}`` starts new episodes in these rows only, and seeds only them.
        """
        mask = (options or {}).get("reset_mask")
        rows = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        return self._reset(*self.env.reset(seed=seed, options=options), rows, seed)

    def reset_rows(self, mask: Tensor, *, seed: int | list[int | None] | None = None) -> tuple[Obs, Info]:
        """See :class:`~headway.envs.batched.Resettable`; no delay is drawn."""
        return self._reset(*require(self.env, Resettable).reset_rows(mask, seed=seed), mask, seed)

    def _reset(self, obs: Obs, info: Info, rows: Tensor, seed: int | list[int | None] | None) -> tuple[Obs, Info]:
        """Go on where some rows of the batch inside have been reset."""
        if seed is not None:
            seeds = row_seeds(seed, self.num_envs)
            chosen = [row for row in rows.nonzero().flatten().tolist() if seeds[row] is not None]
            self._seed([seeds[row] for row in chosen], chosen)
        self._begin(rows.to(self.device), obs)
        return self._shown(*self._received()), info

    def _begin(self, rows: Tensor, obs: Obs) -> None:
        """Start the registers of some rows anew."""
        assert isinstance(obs, Tensor)
        reg = self._registers
        facts = torch.zeros_like(reg["facts"][0])
        facts[:, 0], facts[0, 0], facts[:, 2] = _NEVER, -1, 1
        starts = {
            **{name: torch.zeros_like(reg[name][0]) for name in ("tick", "kappa", "total", "delivered", "ended")},
            "sent": self._initial,
            "arrivals": torch.full_like(reg["arrivals"][0], -1),
            "facts": facts,
            "obs": obs.to(reg["obs"].dtype).unsqueeze(1),
        }
        for name, value in starts.items():
            reg[name] = torch.where(_like(rows, reg[name]), value, reg[name])

    @_one_thread()
    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`."""
        reg, t, resting = self._registers, self._registers["tick"], self._registers["ended"]
        w, k = self._draw()
        # 1: send the action; 2: the environment moves
        executed, beta = _picked(reg["sent"], reg["kappa"]), 1 + reg["kappa"]
        obs, rewards, terminated, truncated, told = self.env.step(executed)
        if "dummy" in told and told["dummy"].any():
            raise ValueError("the batch resets rows in a step of its own, whose delays mean nothing: take SAME_STEP")
        reg["sent"] = _pushed(reg["sent"], actions.to(reg["sent"].dtype))
        reg["arrivals"] = _pushed(reg["arrivals"], t + k)
        # 3: select the newest action that has arrived
        kappa = reg["kappa"] = _first(reg["arrivals"] <= t.unsqueeze(1))
        # 4: send what the environment shows
        terminated, truncated = terminated & ~resting, truncated & ~resting
        ended = terminated | truncated
        arrival = torch.where(ended, t, t + w) if self._immediate else t + w
        facts = (arrival.masked_fill(resting, _NEVER), kappa, beta, terminated, truncated)
        reg["facts"] = _pushed(reg["facts"], torch.stack([fact.long() for fact in facts], 1))
        reg["obs"] = _pushed(reg["obs"], told["final_obs"].to(reg["obs"].dtype))
        earned = rewards.masked_fill(resting, 0)
        reg["total"] = _pushed(reg["total"], reg["total"][:, 0] + earned)
        reg["ended"], reg["tick"] = resting | ended, t + 1
        # 5: receive the newest that has arrived
        omega, received = self._received()
        total = _picked(reg["total"], omega)
        reward, reg["delivered"] = total - reg["delivered"], total
        over, cut = received[:, 3].bool(), received[:, 4].bool()
        shown = self._shown(omega, received)
        undelayed = {
            **{name: part for name, part in told.items() if name not in ("final_obs", "episode", "dummy")},
            "reward": earned,
            "terminated": terminated,
            "truncated": truncated,
            "executed_action": executed,
            "observation_delay": w,
            "action_delay": k,
        }
        info: Info = {"final_obs": shown, "episode": {"r": total, "l": t + 1}, "undelayed": undelayed}
        if self._immediate:  # the end arrives as it happens, and so does what is told of it
            info |= {name: told[name] for name in ("is_success", "_is_success") if name in told}
        return self._restart(over | cut, obs, shown), reward.to(rewards.dtype), over, cut, info

    def _restart(self, done: Tensor, obs: Obs, shown: Obs) -> Obs:
        """Start anew where the end of an episode has arrived; on a GPU without asking whether one has."""
        if not done.is_cuda and not done.any():
            return shown
        if self._resets:
            obs, _ = self.env.reset(options={"reset_mask": done})
        self._begin(done, obs)
        return self._shown(*self._received())

    def _draw(self) -> list[Tensor]:
        """Draw the delays of this tick of observations and of actions; every tick draws both, used or not."""
        reg = self._registers
        u, reg["streams"] = uniforms(reg["streams"], UNIFORMS)
        laws = (self.observation_delay, self.action_delay)
        drawn = [law.draw(u[:, i], reg["tick"], reg["memory"][:, i]) for i, law in enumerate(laws)]
        reg["memory"] = torch.stack([memory for _, memory in drawn], 1)
        delays = [delay for delay, _ in drawn]
        for law, delay in zip(laws, delays, strict=True):
            if not delay.is_cuda:  # asking a GPU would wait for it
                for bound in map(int, delay.aminmax()):
                    if not 0 <= bound <= law.max:
                        raise _beyond(law, bound)
        return delays

    def _received(self) -> tuple[Tensor, Tensor]:
        """:return: age (N,) and facts (N, 5) of the newest capture that has arrived by the end of the last tick."""
        reg = self._registers
        omega = _first(reg["facts"][:, :, 0] < reg["tick"].unsqueeze(1))
        return omega, _picked(reg["facts"], omega)

    def _shown(self, omega: Tensor, received: Tensor) -> Obs:
        """The delayed observations, given what has been received."""
        reg = self._registers
        obs, kappa, beta = _picked(reg["obs"], omega), received[:, 1], received[:, 2]
        if self.form == "bare":
            return obs
        if self.form == "flat":
            ages = [
                age.unsqueeze(1) == torch.arange(law.max + 1, device=self.device)
                for age, law in ((omega, self.observation_delay), (kappa, self.action_delay))
            ]
            return torch.cat([part.flatten(1).float() for part in (obs, reg["sent"], *ages)], 1)
        return {
            "observation": obs,
            "action_buffer": reg["sent"].clone(),
            "observation_age": omega,
            "action_age": kappa.clone(),
            "applied_action_age": beta.clone(),
        }

    def state(self, rows: Tensor | None = None) -> Any:
        """See :class:`~headway.envs.batched.RowSnapshots`; packets on their way included."""
        inner = self.env.state() if rows is None else require(self.env, RowSnapshots).state(rows)
        chosen = slice(None) if rows is None else rows
        return {"env": inner, "delays": {name: value[chosen].clone() for name, value in self._registers.items()}}

    def load_state(self, state: Any, rows: Tensor | None = None) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        count = self.num_envs if rows is None else len(rows)
        group({"env": lambda *_: None, "delays": lambda *_: None})(state, "the state of a batch behind delays")
        check_state(state["delays"], self._registers, count, whole=rows is None)
        applied = self.action_delay.max
        for name, part in (("kappa", state["delays"]["kappa"]), ("facts", state["delays"]["facts"][:, :, 1])):
            check_numbers(part, f"ages of actions in {name!r}", 0, applied)
        if rows is None:
            self.env.load_state(state["env"])
        else:
            require(self.env, RowSnapshots).load_state(state["env"], rows)
        chosen = torch.arange(self.num_envs, device=self.device) if rows is None else rows
        for name, part in self._registers.items():
            self._registers[name] = part.index_copy(0, chosen, state["delays"][name].to(self.device))

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        require(self.env, RowSnapshots).copy_rows(src, dst)
        for name, part in self._registers.items():
            self._registers[name] = part.index_copy(0, dst, part[src])

    def like(self, num_envs: int) -> "BatchedRandomDelay":
        """See :class:`~headway.envs.batched.RowSnapshots`."""
        return BatchedRandomDelay(require(self.env, RowSnapshots).like(num_envs), **self._options)

    def lacks(self, ability: type[Any]) -> str | None:
        """See :meth:`BatchedEnv.lacks`."""
        return self.env.lacks(ability)

    def render(self) -> Any:
        """:return: what the environments draw, undelayed."""
        return self.env.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the batch."""
        self.env.close()


def _delayed_spec(
    inner: EnvSpec | None, arguments: dict[str, Any], form: Form, terminal_delivery: str
) -> EnvSpec | None:
    """:return: how ``gymnasium.make_vec`` makes the same again, given how it makes the batch inside."""
    if inner is None:
        return None
    spec = deepcopy(gym.spec("headway/Delayed-v0"))
    kept = {name: value for name, value in inner.kwargs.items() if name != "autoreset_mode"}
    spec.kwargs = {"env_id": inner.id, **arguments, "form": form, "terminal_delivery": terminal_delivery, **kept}
    return spec


def _pushed(register: Tensor, value: Tensor) -> Tensor:
    """Shift by one, and put a new entry in front; (N, depth, …) and (N, …)."""
    return torch.cat((value.unsqueeze(1), register[:, :-1]), 1)


def _first(mask: Tensor) -> Tensor:
    """:return: the column of the first True of each row, (N, depth) -> (N,)."""
    return mask.to(torch.uint8).argmax(1)


def _picked(register: Tensor, age: Tensor) -> Tensor:
    """:return: one entry of each row, (N, depth, …) and (N,) -> (N, …)."""
    return register[torch.arange(len(age), device=age.device), age]


def _like(mask: Tensor, part: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (part.ndim - 1))
