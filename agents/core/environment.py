"""What an agent does with environments: takes them up, begins episodes, knows what they showed, saves their state."""

import logging
import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
from gymnasium import Env, spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from ...envs import BatchedEnv, make, supports_rgb
from ...envs.schema import array, group, maybe
from ...wrappers.batching import as_batched, counts_of, footprint
from ...wrappers.sb3 import BatchedVecEnv
from ...wrappers.snapshot import StateNotSavable
from ...wrappers.specs import inner_id, spec_of
from .data import NonFiniteError, check_shown
from .files import contents
from .files.errors import one_line
from .loop import LearningLoop
from .normalization import (
    BatchNormalizer,
    is_fresh,
    load_normalizer_state,
    moments_of,
    normalised_keys,
    normalizer_state,
    put_back,
)
from .registry import AGENTS
from .seeds import spawn_seed
from .spaces import Obs, ObservationCodec, check_actions, dtype_name, map_obs, takes

log = logging.getLogger("headway")


class AgentInEnvironment(LearningLoop):
    """The environment of an agent. It can be given another, be moved by somebody else, and be saved or restarted."""

    flattens: ClassVar[bool]
    codec: ObservationCodec
    env_spec: EnvSpec | None
    env_is_broken: bool
    _made_env: bool
    _statistics: Mapping[str, Any] | None
    _env_problem: str

    # -- which it is -------------------------------------------------------------------------------------------------

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Refuse an environment that this kind of agent cannot learn in.

        :param observation_space: what it sees
        :param action_space: what it may do
        :raises ValueError: it cannot; the reason and the remedy are named
        """
        ObservationCodec(observation_space, flatten=cls.flattens)
        check_actions(action_space, cls, sorted(n for n, agent in AGENTS.items() if takes(agent, action_space)))

    def _check_readable(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        ObservationCodec(observation_space, flatten=self.flattens)

    def attach_env(self, env: Any) -> None:
        """Give an agent that was built without one its environment; of any kind the constructor takes.

        :param env: the environment
        :raises ValueError: its spaces differ from the agent's
        """
        training_env, self._made_env = as_training_env(env, self._check_readable), isinstance(env, str)
        for name in ("observation_space", "action_space"):
            if not read_alike(getattr(training_env, name), getattr(self, name)):
                raise ValueError(
                    f"the environment's {name.replace('_', ' ')} is {getattr(training_env, name)}, "
                    f"this {type(self).__name__} was trained for {getattr(self, name)}"
                )
        vars(self)["env"] = training_env  # which an assignment is not to change alone
        self.n_envs, self.env_spec = training_env.num_envs, spec_of(training_env)
        self._vec_normalize_env = unwrap_vec_normalize(training_env)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on in another environment with the same spaces.

        :param env: an environment of any kind the constructor takes
        :param force_reset: start a new episode at the next ``learn``
        :raises ValueError: its spaces, or the number of its rows, differ
        """
        training_env = as_training_env(env, self._check_readable)
        if training_env.num_envs != self.n_envs:
            raise ValueError(
                f"{type(self).__name__} was made for {self.n_envs} environments, got {training_env.num_envs}: "
                f"use {type(self).__name__}.load(path, env) to change their number"
            )
        self.attach_env(training_env)
        self._connect_env()
        if force_reset:
            self._last_obs = None

    @property
    def env_id(self) -> str | None:
        """The id of the environment, of one behind delays that of what is delayed; with its module, where known."""
        return None if self.env_spec is None else inner_id(self.env_spec)

    def _connect_env(self) -> None:
        """Take up the environment's batched face and its normaliser."""
        if self.env is not None:
            self.batched_env: BatchedEnv = as_batched(self.env)
            self._footprint = footprint(self.env)
        normalizer = self._vec_normalize_env
        self.normalizer = None if normalizer is None else BatchNormalizer(normalizer, self.codec, self.device)
        if self.env is not None and self._statistics is not None:
            self._apply_statistics(self._statistics)

    def _apply_statistics(self, state: Mapping[str, Any]) -> None:
        """Go on with the statistics that a policy was saved with, where the environment has none of its own."""
        target = self._vec_normalize_env
        if target is None:
            log.warning(
                "the policy was trained in a VecNormalize, whose statistics its file holds, and this environment has "
                "none: it is shown numbers that it has not learnt to read; wrap the environment in VecNormalize"
            )
        elif is_fresh(target):
            load_normalizer_state(target, state)
        elif normalised_keys(normalizer_state(target)) != normalised_keys(state):
            here, there = (list(normalised_keys(one)) for one in (normalizer_state(target), state))
            raise ValueError(
                f"this VecNormalize normalises {here}, the one that the policy was trained in {there}: build it with "
                "the same norm_obs and norm_obs_keys"
            )
        elif not _same_statistics(normalizer_state(target), state):
            log.warning("this VecNormalize keeps statistics of its own, which differ from those saved with the policy")
        self._statistics = None

    def _seed_env(self, seed: int) -> None:
        assert self.env is not None
        try:
            self.env.seed(seed)
        except AttributeError:
            if hasattr(self.env.unwrapped, "seed"):
                raise
            name = type(self.env.unwrapped).__name__  # as of SuperSuit
            log.warning("%s has no seed method: its environments are not seeded, and runs differ", name)

    # -- episodes ----------------------------------------------------------------------------------------------------

    def _reset_env(self, seeds: list[int | None] | None = None) -> None:
        """Start new episodes.

        :param seeds: one per row; None goes on with the random streams as they are
        """
        assert self.env is not None
        # A VecEnv keeps seeds and options of its next reset itself; a batch behind BatchedVecEnv is handed them.
        waiting = self.env.take_seeds_and_options() if isinstance(self.env, BatchedVecEnv) else {}
        waiting = waiting if seeds is None else waiting | {"seed": seeds}
        moments = moments_of(self.normalizer)
        obs, info = self.batched_env.reset(**waiting)
        raw = info.get("raw")
        try:
            check_shown(self, "from reset", [self.codec.encode(obs, self.device)])
        except NonFiniteError:
            put_back(moments)
            raise
        self.env_is_broken = False
        self.observe(
            self.codec.encode(obs, self.device),
            None if raw is None else self.codec.encode(raw[0], self.device, raw=True),
        )

    def observe(self, obs: Obs, raw_obs: Obs | None) -> None:
        """Take up what the environments show next.

        :param obs: what to act on, (N, *O)
        :param raw_obs: what to store, if it differs, (N, *O)
        """
        self._last_obs: Any = obs
        self._last_original_obs: Any = raw_obs
        self._footprint = footprint(self.env)

    def keep_environment(self) -> None:
        """Begin new episodes if somebody else has stepped or reset the environments since the agent last did, as an
        evaluation in the training environment does: what it last saw is not what they would go on from."""
        if all(map(operator.is_, self._footprint, footprint(self.env))):
            return
        log.info("the training environment was moved by somebody else: new episodes begin")
        self.interrupt()

    def interrupt(self) -> None:
        """Begin new episodes in the midst of a round."""
        self._reset_env()

    def _counts(self) -> Any:
        return None if self.env is None else counts_of(self.batched_env)

    @property
    def last_obs(self) -> Obs:
        """What to act on next, (N, *O)."""
        return self._last_obs  # type: ignore[no-any-return]

    @property
    def last_raw_obs(self) -> Obs:
        """The same before normalisation, to store, (N, *O)."""
        return self._last_obs if self._last_original_obs is None else self._last_original_obs  # type: ignore[no-any-return]

    # -- state -------------------------------------------------------------------------------------------------------

    def _env_state(self) -> dict[str, Any] | None:
        """The environments and what they last showed, or None where they must be restarted."""
        if self.env_is_broken or self._last_obs is None:
            return None
        try:
            state = {"env": self.batched_env.state(), "obs": self._last_obs, "raw_obs": self._last_original_obs}
            contents.check_holdable(state)
        except Exception as cause:  # of the environment's own code, perhaps: it must not end the run
            known = isinstance(cause, StateNotSavable)
            problem = one_line(str(cause) if known else f"its state cannot be saved ({type(cause).__name__}: {cause})")
            if problem != self._env_problem:  # once, not at every checkpoint
                log.warning("a resumed run will restart its episode: %s", problem)
            self._env_problem = problem
            return None
        return state

    def _load_env_state(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            shown, stored = (
                {name: array((self.n_envs, *f.shape), dtype_name(f.dtype)) for name, f in fields.items()}
                for fields in (self.codec.fields, self.codec.raw_fields)
            )
            seen, raw_seen = (next(iter(rows.values())) if len(rows) == 1 else group(rows) for rows in (shown, stored))
            group({"env": lambda *_: None, "obs": seen, "raw_obs": maybe(raw_seen)})(state, "environment")
            with suppress(Exception):  # it makes what the environment has only after a reset; learn would say why not
                self.batched_env.reset()
            try:
                self.batched_env.load_state(state["env"])
            except Exception as cause:  # of the environment's own code, perhaps
                log.warning(
                    "the environment's state cannot be put back, and the episode it was saved in is restarted: %s",
                    one_line(str(cause) or repr(cause)),
                )
                state = None
        elif self.env is not None and self.num_timesteps:
            log.warning("the checkpoint holds no environment state: the episode it was saved in is restarted")
        if state is not None:
            obs, raw = (None if o is None else map_obs(self._to_device, o) for o in (state["obs"], state["raw_obs"]))
            assert obs is not None
            self.observe(obs, raw)
        elif self.env is not None and self.num_timesteps:
            self.env.seed(spawn_seed(self.seed or 0, "restart", self.num_timesteps))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def _normalizer_state(self) -> dict[str, Any] | None:
        """:return: of the environment's VecNormalize, or of the one that a policy without environment came from."""
        return self._statistics if self._vec_normalize_env is None else normalizer_state(self._vec_normalize_env)  # type: ignore[return-value]

    def _load_normalizer_state(self, state: Mapping[str, Any] | None) -> None:
        if state is not None and self._vec_normalize_env is not None:
            load_normalizer_state(self._vec_normalize_env, state)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold. A ``VecNormalize`` leaves out what it is around; that goes beside it."""
        source = self._vec_normalize_env
        return vars(self) | {"_beneath": None if source is None else (source.venv, source.returns)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        beneath = state.pop("_beneath")
        vars(self).update(state)
        if beneath is not None:
            assert self._vec_normalize_env is not None
            self._vec_normalize_env.set_venv(beneath[0])
            self._vec_normalize_env.returns = beneath[1]


def as_training_env(env: Any, check: Callable[[spaces.Space[Any], spaces.Space[Any]], None]) -> VecEnv:
    """Whatever the user gave, as the VecEnv that Stable-Baselines3's base class expects.

    :param env: an environment of any kind an agent's constructor takes, or its id
    :param check: of its spaces, before anybody else's code meets them
    :return: the environment
    :raises TypeError: it is none
    """
    if isinstance(env, str):
        env = make(env, render_mode="rgb_array" if supports_rgb(env) else None)
    if not isinstance(env, (VecEnv, VectorEnv, Env)):
        raise TypeError(f"{env!r} is no environment: give an id, a gymnasium.Env, a VecEnv or a VectorEnv")
    single = "single_" if isinstance(env, VectorEnv) and hasattr(env, "single_observation_space") else ""
    check(getattr(env, f"{single}observation_space"), getattr(env, f"{single}action_space"))
    if isinstance(env, VectorEnv):
        env = BatchedVecEnv(as_batched(env))
    return BaseAlgorithm._wrap_env(env)


def _same_statistics(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same_statistics(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def read_alike(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether spaces are equal up to the precision of their numbers, which networks read as float32 anyway.

    Gymnasium's MuJoCo environments observe in float64, a batch of the same task in float32.
    """
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return one.keys() == other.keys() and all(read_alike(one[key], other[key]) for key in one)
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        kinds = one.dtype == other.dtype or one.dtype.kind == other.dtype.kind == "f"
        same_bounds = one.shape == other.shape and np.allclose([one.low, one.high], [other.low, other.high])
        return kinds and same_bounds
    return bool(one == other)
