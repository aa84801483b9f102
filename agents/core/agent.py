"""The base of every agent: Stable-Baselines3's outer interface, one training loop, safe files, exact resume."""

import io
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from gymnasium import Env, spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, safe_mean
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn

from ...envs import BatchedEnv, make, supports_rgb
from ...envs.naming import nearest
from ...wrappers.batching import as_batched
from ...wrappers.sb3 import BatchedVecEnv
from .config import AgentConfig
from .data import Collector
from .files import contents
from .logging import Metrics
from .nets import Tracked, TrackedModules
from .normalization import BatchNormalizer
from .policy import AgentPolicy
from .spaces import ActionScaler, ObservationCodec, check_action_space

C = TypeVar("C", bound=AgentConfig)
M = TypeVar("M", bound=nn.Module)

AGENTS: dict[str, type["ActorCriticAgent[Any]"]] = {}
"""Every agent class by name; a class with a ``config_class`` enters when it is defined."""


class ActorCriticAgent(BaseAlgorithm, Generic[C]):
    """What all agents share. A concrete agent is final and fills in :meth:`_build`, :meth:`_act` and :meth:`_update`.

    It is a Stable-Baselines3 algorithm: its callbacks, loggers, ``evaluate_policy``, vector environments and
    ``VecNormalize`` work as they do there. It also takes Gymnasium vector environments and
    :class:`~headway.envs.BatchedEnv`.

    :param policy: "MlpPolicy", "MultiInputPolicy" (Dict observations) or "CnnPolicy" (images)
    :param env: the environment, or its id
    :param config: all hyper-parameters at once; or give them by name as ``hyper``
    :param seed: of every random stream; None draws one, which is then saved like any other
    :param device: "auto" takes a GPU when there is one
    :param verbose: 1 prints Stable-Baselines3's table
    :param tensorboard_log: folder for TensorBoard events
    :param stats_window_size: episodes over which logged returns are averaged
    :param policy_kwargs: Stable-Baselines3's spelling of ``net_arch``, ``activation_fn`` and ``n_critics``
    :param hyper: fields of the agent's configuration class
    :raises TypeError: an unknown or mistyped hyper-parameter; the nearest names are given
    :raises ValueError: one out of its range, or an observation or action space that the agent cannot work in
    """

    config_class: ClassVar[type[AgentConfig]]
    discrete_actions: ClassVar[bool] = False
    """Whether the agent also acts in Discrete spaces."""

    policy_aliases: ClassVar[dict[str, type[AgentPolicy]]] = dict.fromkeys(  # type: ignore[assignment]
        ("MlpPolicy", "MultiInputPolicy", "CnnPolicy"), AgentPolicy
    )
    config: C
    collector: Collector

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" in cls.__dict__:
            AGENTS[cls.__name__] = cls

    def __init__(
        self,
        policy: str = "MlpPolicy",
        env: "str | Env[Any, Any] | VecEnv | VectorEnv[Any, Any, Any] | None" = None,
        *,
        config: C | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        policy_kwargs: Mapping[str, Any] | None = None,
        _init_setup_model: bool = True,
        **hyper: Any,
    ) -> None:
        hyper |= _policy_fields(policy_kwargs or {})
        self.config = self._configure(config, hyper)
        self.policy_name = policy
        training_env = None if env is None else _training_env(env)
        if training_env is not None:
            self._check_spaces(training_env.observation_space, training_env.action_space)
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        super().__init__(
            policy,
            training_env,
            self.config.learning_rate,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        self.env_id = None if self.env is None else _env_id(self.env)
        self.resumed_extra: Any = None
        self.stop_requested = False
        self.env_is_broken = False
        self._pending_updates = 0
        if _init_setup_model and self.env is not None:
            self._setup_model()

    # -- what a concrete agent fills in ------------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> None:
        """Make the networks, each registered once with :meth:`track`."""

    @abstractmethod
    def _act(self, obs: Tensor, deterministic: bool, generator: torch.Generator) -> Tensor:
        """Choose actions.

        :param obs: encoded observations, (B, *O)
        :param deterministic: the mode instead of a sample
        :param generator: where a sample's noise comes from
        :return: (B, A) in [-1, 1]
        """

    @abstractmethod
    def _update(self) -> dict[str, Tensor]:
        """Take one gradient step; :return: scalars to log, as tensors."""

    @abstractmethod
    def _make_collector(self) -> Collector:
        """:return: the source of the agent's data."""

    # -- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def _configure(cls, config: C | None, hyper: dict[str, Any]) -> C:
        if config is None:
            return cls.config_class.from_dict(hyper)  # type: ignore[return-value]
        if not isinstance(config, cls.config_class):
            raise TypeError(f"{cls.__name__} takes a {cls.config_class.__name__}, got {type(config).__name__}")
        return cls.config_class.from_dict(config.to_dict() | hyper)  # type: ignore[return-value]

    def _check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        ObservationCodec(observation_space)
        able = sorted(name for name, agent in AGENTS.items() if agent.discrete_actions)
        alternatives = (
            f"agents for Discrete actions: {', '.join(able)}" if able else "no agent here takes Discrete actions yet"
        )
        check_action_space(action_space, type(self).__name__, alternatives)

    def _setup_model(self) -> None:
        assert isinstance(self.action_space, spaces.Box)
        self.set_random_seed(self.seed)
        self.codec = ObservationCodec(self.observation_space)
        self.scaler = ActionScaler(self.action_space, self.device)
        # One stream per purpose: evaluating a policy, say, must not change how it goes on exploring.
        purposes = ("collect", "update", "store", "predict")
        seeds = np.random.SeedSequence(self.seed).generate_state(len(purposes), np.uint64)
        self.generators = {
            purpose: torch.Generator(self.device).manual_seed(int(seed >> 1))
            for purpose, seed in zip(purposes, seeds.tolist(), strict=True)
        }
        self.modules = TrackedModules(self.device, self.config.learning_rate)
        self.metrics = Metrics()
        self._build()
        self.policy = AgentPolicy(
            self.observation_space, self.action_space, self.modules.networks(), self._predict_actions, self.codec
        ).to(self.device)
        self._connect_env()
        self.collector = self._make_collector()

    def _connect_env(self) -> None:
        """Take up the environment's batched face and its normaliser."""
        if self.env is not None:
            self.batched_env: BatchedEnv = as_batched(self.env)
        normalizer = self._vec_normalize_env
        self.normalizer = None if normalizer is None else BatchNormalizer(normalizer, self.codec, self.device)

    def track(self, name: str, module: M, *, target: bool = False) -> Tracked[M]:
        """Register a network: optimiser, target, clipping, device, files and ``policy`` follow.

        :param name: its name
        :param module: the network
        :param target: keep a slowly following copy
        :return: the handle that trains it
        """
        return self.modules.add(name, module, target=target, max_grad_norm=self.config.max_grad_norm)

    def attach_env(self, env: Any) -> None:
        """Give an agent that was built without one its environment; of any kind the constructor takes.

        :param env: the environment
        :raises ValueError: its spaces differ from the agent's
        """
        training_env = _training_env(env)
        for name in ("observation_space", "action_space"):
            if not _read_alike(getattr(training_env, name), getattr(self, name)):
                raise ValueError(
                    f"the environment's {name.replace('_', ' ')} is {getattr(training_env, name)}, "
                    f"this {type(self).__name__} was trained for {getattr(self, name)}"
                )
        self.env, self.n_envs, self.env_id = training_env, training_env.num_envs, _env_id(training_env)
        self._vec_normalize_env = unwrap_vec_normalize(training_env)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on in another environment with the same spaces.

        :param env: an environment of any kind the constructor takes
        :param force_reset: start a new episode at the next ``learn``
        :raises ValueError: its spaces, or the number of its rows, differ
        """
        training_env = _training_env(env)
        if training_env.num_envs != self.n_envs:
            raise ValueError(
                f"{type(self).__name__} was made for {self.n_envs} environments, got {training_env.num_envs}: "
                f"use {type(self).__name__}.load(path, env) to change their number"
            )
        self.attach_env(training_env)
        self._connect_env()
        if force_reset:
            self._last_obs = None

    # -- acting ------------------------------------------------------------------------------------------------------

    def _predict_actions(self, obs: Tensor, deterministic: bool) -> Tensor:
        return self._act(obs, deterministic, self.generators["predict"])

    def explore(self, obs: Tensor) -> Tensor:
        """Choose actions while collecting.

        :param obs: encoded observations, (N, *O)
        :return: (N, A) in [-1, 1]
        """
        return self._act(obs, False, self.generators["collect"])

    # -- the training loop -------------------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train.

        :param total_timesteps: environment steps, over all rows together; more of them when
            ``reset_num_timesteps`` is False
        :param callback: Stable-Baselines3 callbacks
        :param log_interval: episodes between log lines; None leaves logging to callbacks
        :param tb_log_name: name of the run under ``tensorboard_log``; the class's name by default
        :param reset_num_timesteps: start counting, and a new episode, afresh
        :param progress_bar: show Stable-Baselines3's progress bar
        :return: the agent
        :raises headway.agents.NonFiniteError: the environment returned NaN or infinity
        """
        self._log_interval = log_interval
        total_timesteps, callbacks = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callbacks.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps or self.collector.in_progress or self._pending_updates:
            if not self._pending_updates and not self.collector.collect(callbacks):
                break
            if not self._train():
                break
        callbacks.on_training_end()
        return self

    def _train(self) -> bool:
        """Work off the gradient steps that are due; False when stopped between two of them."""
        while self._pending_updates:
            if self.stop_requested:
                return False
            if self.config.learning_rate_schedule == "linear":
                self.modules.scale_learning_rates(max(self._current_progress_remaining, 0.0))
            self.metrics.add(self._update())
            self._n_updates += 1
            self._pending_updates -= 1
        return True

    @property
    def current_learning_rate(self) -> float:
        """The step size at this point of the schedule."""
        if self.config.learning_rate_schedule == "constant":
            return self.config.learning_rate
        return self.config.learning_rate * max(self._current_progress_remaining, 0.0)

    @property
    def remaining_timesteps(self) -> int:
        """Steps still missing to the ``total_timesteps`` of the last ``learn``; see :meth:`resume`."""
        return max(self._total_timesteps - self.num_timesteps, 0)

    def request_stop(self) -> None:
        """Ask ``learn`` to return where it can be continued exactly. Safe in a signal handler."""
        self.stop_requested = True

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError(
                f"{type(self).__name__} has no environment to learn in: pass one to the constructor or set_env"
            )
        self.start_time = time.time_ns()
        self.stop_requested = False
        if self.ep_info_buffer is None or reset_num_timesteps:
            self.ep_info_buffer = deque(maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if reset_num_timesteps:
            self.num_timesteps = self._episode_num = self._pending_updates = 0
            self.collector = self._make_collector()
        else:
            total_timesteps += self.num_timesteps
        self._total_timesteps = total_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        if reset_num_timesteps or self._last_obs is None:
            self._reset_env()
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps)
        return total_timesteps, self._init_callback(callback, progress_bar)

    def _reset_env(self) -> None:
        assert self.env is not None
        # A VecEnv keeps the seeds of its next reset itself; a batch behind BatchedVecEnv has to be handed them.
        seeds = self.env.take_seeds() if isinstance(self.env, BatchedVecEnv) else None
        obs, info = self.batched_env.reset(seed=seeds)
        raw = info.get("raw")
        self.env_is_broken = False
        self.observe(
            self.codec.encode(obs, self.device), None if raw is None else self.codec.encode(raw[0], self.device)
        )

    def observe(self, obs: Tensor, raw_obs: Tensor | None) -> None:
        """Take up what the environments show next.

        :param obs: what to act on, (N, *O)
        :param raw_obs: what to store, if it differs, (N, *O)
        """
        self._last_obs: Any = obs
        self._last_original_obs: Any = raw_obs

    @property
    def last_obs(self) -> Tensor:
        """What to act on next, (N, *O)."""
        return self._last_obs  # type: ignore[no-any-return]

    @property
    def last_raw_obs(self) -> Tensor:
        """The same before normalisation, to store, (N, *O)."""
        return self._last_obs if self._last_original_obs is None else self._last_original_obs  # type: ignore[no-any-return]

    # -- logging -----------------------------------------------------------------------------------------------------

    def count_episodes(self, dones: np.ndarray[Any, Any], infos: list[dict[str, Any]]) -> None:
        """Take up the episodes that ended in a step, and log when it is time.

        :param dones: which rows ended, (N,)
        :param infos: one dict per row, with ``episode`` where it ended
        """
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if not dones.any():
            return
        ended = np.flatnonzero(dones)
        self._update_info_buffer([infos[row] for row in ended], dones[ended])
        before = self._episode_num
        self._episode_num += len(ended)
        # Once, however many rows end together: all of them would write the same line.
        if self._log_interval is not None and self._episode_num // self._log_interval > before // self._log_interval:
            self.dump_logs()

    def _distributions(self) -> dict[str, Tensor]:
        """:return: numbers to show as histograms in TensorBoard, by their full names."""
        return {}

    def dump_logs(self) -> None:
        """Write one line of progress to the logger, under Stable-Baselines3's names."""
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        record = self.logger.record
        record("time/episodes", self._episode_num, exclude="tensorboard")
        if self.ep_info_buffer:
            record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        if self._n_updates:
            record("train/n_updates", self._n_updates, exclude="tensorboard")
            record("train/learning_rate", self.current_learning_rate)
        for name, value in self.metrics.flush().items():
            record(f"train/{name}", value)
        for name, values in self._distributions().items():
            record(name, values, exclude=("stdout", "log", "json", "csv"))
        self.logger.dump(step=self.num_timesteps)

    # -- files -------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the policy and everything it takes to go on training it but the experience: see :meth:`save_checkpoint`.

        The file is a zip of JSON and safetensors. It holds no pickle, and loading it runs no code.

        :param path: file to write (".zip" is added to a name without a suffix) or a binary stream; an existing file is
            replaced only once the new one is complete
        :param exclude: must be empty: the file holds a fixed set of entries, not the object's attributes
        :param include: likewise
        """
        if exclude or include:
            raise ValueError("Headway's files hold a fixed set of entries: exclude and include do not apply")
        contents.save_agent(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **overrides: Any,
    ) -> Self:
        """Load a saved agent.

        :param path: file, with or without ".zip", or a binary stream
        :param env: environment to go on in; not needed to predict
        :param device: where to load it
        :param custom_objects: accepted for the sake of Stable-Baselines3's signature; there are no pickled objects to
            replace in the file
        :param print_system_info: print the versions that wrote the file
        :param force_reset: accepted likewise; a loaded agent always starts a new episode (:meth:`resume` does not)
        :param overrides: hyper-parameters, ``seed``, ``verbose`` or ``tensorboard_log`` to change
        :return: the agent
        :raises FileFormatError: (a ``ValueError``) the file is broken, foreign, newer, or another agent's
        :raises ValueError: the environment's spaces differ from the policy's
        """
        return contents.load_agent(cls, path, env, device, overrides, print_system_info)

    def save_checkpoint(self, directory: str | Path, *, extra: Any = None, keep: int | None = 2) -> Path:
        """Save everything that training needs: :meth:`resume` goes on as if it had never stopped, bit for bit on a CPU.

        Networks, targets, optimisers, replay store, every random stream, counters, environments (see
        :func:`headway.wrappers.capture`; one that cannot be copied is restarted on resume, and the log says so).

        :param directory: where checkpoints lie; made if missing
        :param extra: nested plain data of the caller's, given back as ``resumed_extra``
        :param keep: how many of the newest to keep; None keeps all
        :return: the file written
        :raises OSError: it could not be written; earlier checkpoints are untouched
        """
        return contents.save_checkpoint(self, Path(directory), extra, keep)

    @classmethod
    def resume(
        cls, directory: str | Path, env: Any = None, device: torch.device | str = "auto", **options: Any
    ) -> Self:
        """Go on from the newest complete checkpoint.

        ``agent.learn(agent.remaining_timesteps, reset_num_timesteps=False)`` then finishes the run.

        :param directory: where checkpoints lie
        :param env: an environment built as the interrupted one was; made from its id where there was one row
        :param device: where to load it
        :param options: ``verbose`` or ``tensorboard_log``
        :return: the agent
        :raises FileNotFoundError: no complete checkpoint there
        :raises FileFormatError: (a ``ValueError``) it is another agent's
        """
        return contents.resume_agent(cls, Path(directory), env, device, options)


def _training_env(env: Any) -> VecEnv:
    """Whatever the user gave, as the VecEnv that Stable-Baselines3's base class expects."""
    if isinstance(env, str):
        env = make(env, render_mode="rgb_array" if supports_rgb(env) else None)
    if isinstance(env, VectorEnv):
        env = BatchedVecEnv(as_batched(env))
    if not isinstance(env, (VecEnv, Env)):
        raise TypeError(f"{env!r} is no environment: give an id, a gymnasium.Env, a VecEnv or a VectorEnv")
    return BaseAlgorithm._wrap_env(env)


def _read_alike(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether spaces are equal up to the precision of their numbers, which networks read as float32 anyway.

    Gymnasium's MuJoCo environments observe in float64, a batch of the same task in float32.
    """
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return one.keys() == other.keys() and all(_read_alike(one[key], other[key]) for key in one)
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        kinds = one.dtype == other.dtype or one.dtype.kind == other.dtype.kind == "f"
        same_bounds = one.shape == other.shape and np.allclose([one.low, one.high], [other.low, other.high])
        return kinds and same_bounds
    return bool(one == other)


def _env_id(env: VecEnv) -> str | None:
    """The registered id behind a vector environment, if it tells."""
    try:
        spec = env.get_attr("spec")[0]
    except (AttributeError, NotImplementedError):
        return None
    return getattr(spec, "id", None)


_ACTIVATIONS: dict[Callable[..., nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.ELU: "elu"}


def _policy_fields(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Stable-Baselines3's ``policy_kwargs``."""
    translated: dict[str, Any] = {}
    for name, value in policy_kwargs.items():
        if name == "activation_fn" and value in _ACTIVATIONS:
            translated["activation"] = _ACTIVATIONS[value]
        elif name in ("net_arch", "n_critics") and isinstance(value, (list, tuple, int)):
            translated[name] = value
        else:
            known = ("net_arch", "n_critics", "activation_fn")
            raise TypeError(f"policy_kwargs cannot hold {name}={value!r}: {nearest(name, known)} (ReLU, Tanh or ELU)")
    return translated
