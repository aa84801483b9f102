"""The base of every agent: Stable-Baselines3's interface on one training loop, with safe files and exact resume."""

import io
import logging
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from gymnasium import Env, spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize
from torch import Tensor, nn

from ...envs import BatchedEnv, make, supports_rgb
from ...envs.generators import write_torch
from ...envs.schema import array, group, maybe
from ...wrappers.batching import as_batched, counts_of, footprint
from ...wrappers.sb3 import BatchedVecEnv
from ...wrappers.snapshot import StateNotSavable, global_streams, set_global_streams
from ...wrappers.specs import (
    inner_id,
    is_batch,
    make_single,
    make_spec,
    named,
    spec_from_json,
    spec_of,
    spec_to_json,
    unasked,
)
from .attributes import expose, guard
from .config import AgentConfig
from .data import NonFiniteError, check_shown, diverged, first_broken
from .files import contents, list_checkpoints
from .files.budget import Budget
from .files.checkpoints import choose_run, run_of
from .files.contents import Contents
from .files.errors import FileFormatError, one_line, reading
from .loop import LearningLoop, Part
from .nets import Optimiser, Tracked, TrackedModules, check_precision
from .normalization import (
    BatchNormalizer,
    checked_state,
    is_fresh,
    load_normalizer_state,
    moments_of,
    normalised_keys,
    normalizer_state,
    put_back,
)
from .policy import AgentPolicy, Memory
from .registry import AGENTS, agent_name, register_agent
from .sb3_names import POLICIES, as_fields, check_policy, check_subclass, policy_fields
from .seeds import spawn_seed
from .spaces import (
    Obs,
    ObservationCodec,
    actions_of,
    check_actions,
    count_rows,
    dtype_name,
    map_obs,
    space_from_json,
    space_to_json,
    takes,
)

PURPOSES = ("collect", "update", "store", "predict")
"""One stream each: evaluating a policy, say, must not change how it goes on exploring."""

_PLAIN = ("seed", "verbose", "tensorboard_log", "stats_window_size")
"""What the constructor takes besides hyper-parameters, and ``load`` may change."""

C = TypeVar("C", bound=AgentConfig)
M = TypeVar("M", bound=nn.Module)

log = logging.getLogger("headway")


class ActorCriticAgent(LearningLoop, Generic[C]):
    """What all agents share. A concrete agent is final and fills in :meth:`_build`, :meth:`_act` and :meth:`_update`.

    It is a Stable-Baselines3 algorithm: its callbacks, loggers, ``evaluate_policy``, vector environments and
    ``VecNormalize`` work as they do there. It also takes Gymnasium vector environments and
    :class:`~headway.envs.BatchedEnv`.

    :param policy: "MlpPolicy", "MultiInputPolicy" (Dict observations) or "CnnPolicy" (images)
    :param env: the environment, or its id
    :param config: all hyper-parameters at once; or give them by name as ``hyper``
    :param seed: of every random stream, the environment's and the global ones included, as in Stable-Baselines3; None
        draws one for the agent's own streams, and leaves the environment's seeds and the global streams alone
    :param device: "auto" takes a GPU when there is one
    :param verbose: 1 prints Stable-Baselines3's table
    :param tensorboard_log: folder for TensorBoard events
    :param stats_window_size: episodes over which logged returns are averaged
    :param policy_kwargs: Stable-Baselines3's spelling of ``net_arch``, ``activation_fn`` and ``n_critics``
    :param hyper: fields of the agent's configuration class, and what it lists in :attr:`arguments`
    :raises TypeError: an unknown or mistyped hyper-parameter; the nearest names are given
    :raises ValueError: one out of its range, or an observation or action space that the agent cannot work in
    """

    config_class: ClassVar[type[AgentConfig]]
    action_kinds: ClassVar[tuple[str, ...]] = ("Box",)
    """Kinds of action space that the agent takes: Box, Discrete."""
    squashes: ClassVar[bool] = True
    """Whether its actions fill [-1, 1], to be scaled to a Box; otherwise they are in its unit, and clipped."""
    flattens: ClassVar[bool] = False
    """Whether it reads one vector, in which integers count as numbers."""
    arguments: ClassVar[tuple[str, ...]] = ()
    """What constructor, ``load`` and ``resume`` take besides an environment, by name; an attribute each."""
    shares_features: ClassVar[bool] = False
    """Whether its networks share what they read of images."""
    only_initial: ClassVar[tuple[str, ...]] = ()
    """Fields that say what weights begin with, and mean nothing to ``load``."""
    loads_afresh: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Networks that begin anew where ``load`` is told another value of a field, by the field."""

    policy_aliases: ClassVar[dict[str, type[AgentPolicy]]] = dict.fromkeys(POLICIES, AgentPolicy)  # type: ignore[assignment]
    config: C

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_subclass(cls)
        if "config_class" in cls.__dict__:
            register_agent(cls)
            expose(cls)

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
        for name in self.arguments:
            setattr(self, name, hyper.pop(name, None))
        check_policy(policy, None)
        networks = policy_fields(policy, self.config_class, self.shares_features, policy_kwargs or {})
        self.config = self._configure(config, as_fields(self.config_class, hyper) | networks)
        self.policy_name = policy
        self._made_env = env is None or isinstance(env, str)
        env = self._default_env() if env is None else env
        training_env = None if env is None else _training_env(env, self.check_spaces)
        if training_env is not None and not self.flattens:
            check_policy(policy, training_env.observation_space)
        self.seed_is_drawn = seed is None
        """Whether the user gave no seed. It is drawn from torch's global stream, so that a seed of that counts."""
        seed = int(torch.randint(2**32, ())) if seed is None else seed
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
        self.env_spec: EnvSpec | None = None if self.env is None else spec_of(self.env)
        self.resumed_extra: Any = None
        self.scales_buffers = True
        """Whether it reads action buffers in [-1, 1]; policies of earlier versions may not."""
        self._statistics: Mapping[str, Any] | None = None
        """Of the VecNormalize that a loaded policy was trained in."""
        self._budget: AbstractContextManager[Any] = nullcontext()
        self.env_is_broken = False
        self._env_problem = ""
        self.last_checkpoint: Path | None = None
        """The newest that was written, or resumed from."""
        if _init_setup_model and self.env is not None:
            self._setup_model()

    # -- what a concrete agent fills in ------------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> None:
        """Make the networks, each registered once with :meth:`track`."""

    @abstractmethod
    def _act(self, obs: Any, deterministic: bool, generator: torch.Generator) -> Tensor:
        """Choose actions.

        :param obs: encoded observations, (B, *O), or several tensors by name
        :param deterministic: the mode instead of a sample
        :param generator: where a sample's noise comes from
        :return: (B, A), in [-1, 1] of agents that squash; (B,) int64 of Discrete ones, from 0
        """

    def _new_memory(self, rows: int) -> Memory | None:
        """:return: what an agent that remembers knows at the start of episodes, (rows, …) each; None of all others."""
        return None

    def _act_with(
        self, memory: Memory, obs: Any, deterministic: bool, generator: torch.Generator
    ) -> tuple[Tensor, Memory]:
        """Choose actions as :meth:`_act` does, of an agent that remembers; :return: them, and the memory after."""
        raise NotImplementedError

    def _config_changed(self, before: AgentConfig) -> None:
        """Take up what was made of the configuration, after a field of its ``live`` has changed.

        :param before: the configuration until now
        :raises AttributeError: it cannot be; nothing is changed then
        """
        cfg = self.config
        self.modules.settle(cfg.learning_rate, cfg.max_grad_norm)
        self.modules.scale_learning_rates(self.current_learning_rate / cfg.learning_rate)

    def _default_env(self) -> Any:
        """:return: the environment of an agent that was given none; None where it can do without."""
        return None

    # -- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def _configure(cls, config: C | None, hyper: dict[str, Any]) -> C:
        if config is None:
            return cls.config_class.from_dict(hyper)  # type: ignore[return-value]
        if not isinstance(config, cls.config_class):
            raise TypeError(f"{cls.__name__} takes a {cls.config_class.__name__}, got {type(config).__name__}")
        return cls.config_class.from_dict(config.to_dict() | hyper)  # type: ignore[return-value]

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

    def _setup_model(self) -> None:
        if not self.seed_is_drawn:
            self.set_random_seed(self.seed)
        elif self._made_env and self.env is not None:
            self._seed_env(self.seed or 0)
        if self.env is not None:  # to predict with a policy that was trained so, any processor will do
            check_precision(self.config.precision, self.device)
        self.codec = ObservationCodec(
            self.observation_space,
            flatten=self.flattens,
            normalised=normalised_keys(self._normalizer_state()),
            scale_buffer=self.scales_buffers,
        )
        self.actions = actions_of(self.action_space, self.device, self.squashes)
        self.generators = {purpose: torch.Generator(self.device) for purpose in PURPOSES}
        self._seed_generators()
        self.modules = TrackedModules(self.device, self.config.learning_rate)
        self._begin_loop()
        self.register("generators", Part(self._streams, self._load_streams))
        with self._budget, torch.random.fork_rng(devices=[], enabled=self.seed_is_drawn):
            if self.seed_is_drawn:
                torch.default_generator.manual_seed(self.seed or 0)
            self._build()
        self.policy = AgentPolicy(
            self.observation_space,
            self.action_space,
            self.modules.networks(),
            self._predict_actions,
            self.codec,
            self.actions,
        ).to(self.device)
        self._connect_env()
        self.collector = self._make_collector()
        self.register("environment", Part(self._env_state, self._load_env_state))
        self.register("normalizer", Part(self._normalizer_state, self._load_normalizer_state))
        # Last: what is put back before may draw from them.
        self.register("global_streams", Part(global_streams, set_global_streams))

    def _seed_generators(self) -> None:
        seeds = np.random.SeedSequence(self.seed).generate_state(len(PURPOSES), np.uint64).tolist()
        for generator, seed in zip(self.generators.values(), seeds, strict=True):
            generator.manual_seed(int(seed >> 1))

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed every random stream: the agent's, the environment's, and Python's, NumPy's and torch's global ones.

        :param seed: None changes nothing
        """
        if seed is None:
            return
        self.seed, self.seed_is_drawn = seed, False
        self._seed_global_streams(seed)
        self.action_space.seed(seed)
        if self.env is not None:
            self._seed_env(seed)
        if hasattr(self, "generators"):
            self._seed_generators()

    def _seed_env(self, seed: int) -> None:
        assert self.env is not None
        try:
            self.env.seed(seed)
        except AttributeError:
            if hasattr(self.env.unwrapped, "seed"):
                raise
            name = type(self.env.unwrapped).__name__  # as of SuperSuit
            log.warning("%s has no seed method: its environments are not seeded, and runs differ", name)

    def _seed_global_streams(self, seed: int) -> None:
        set_random_seed(seed, using_cuda=self.device.type == "cuda")

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

    def track(
        self,
        name: str,
        module: M,
        *,
        target: bool = False,
        optimiser: Optimiser | None = None,
        frozen: bool = False,
        joint_norm: bool = False,
    ) -> Tracked[M]:
        """Register a network: optimiser, target, clipping, device, files and ``policy`` follow.

        :param name: its name
        :param module: the network
        :param target: keep a slowly following copy
        :param optimiser: what moves it; None: Adam. One without a rate of its own has the configuration's.
        :param frozen: it is never moved
        :param joint_norm: ``max_grad_norm`` is of all its gradients together, not of each member of a stack
        :return: the handle that trains it
        """
        return self.modules.add(
            name,
            module,
            optimiser=optimiser,
            target=target,
            frozen=frozen,
            max_grad_norm=self.config.max_grad_norm,
            joint_norm=joint_norm,
        )

    def attach_env(self, env: Any) -> None:
        """Give an agent that was built without one its environment; of any kind the constructor takes.

        :param env: the environment
        :raises ValueError: its spaces differ from the agent's
        """
        training_env, self._made_env = _training_env(env, self._check_readable), isinstance(env, str)
        for name in ("observation_space", "action_space"):
            if not _read_alike(getattr(training_env, name), getattr(self, name)):
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
        training_env = _training_env(env, self._check_readable)
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

    # -- acting ------------------------------------------------------------------------------------------------------

    def _predict_actions(
        self, obs: Obs, deterministic: bool, memory: Memory | None, starts: Tensor | None
    ) -> tuple[Tensor, Memory | None]:
        generator = self.generators["predict"]
        fresh = self._new_memory(count_rows(obs))
        if fresh is None:
            return self._act(obs, deterministic, generator), None
        if memory is None:
            memory = fresh
        elif starts is not None:
            memory = {name: torch.where(_over(starts, part), fresh[name], part) for name, part in memory.items()}
        return self._act_with(memory, obs, deterministic, generator)

    def explore(self, obs: Any) -> dict[str, Tensor]:
        """Choose while collecting.

        :param obs: encoded observations, (N, *O), or several tensors by name
        :return: ``actions`` as of :meth:`_act`, and whatever else shall be kept with the step, (N, …) each
        """
        return {"actions": self._act(obs, False, self.generators["collect"])}

    def choose(self) -> dict[str, Tensor]:
        """:return: what the agent does next, as of :meth:`explore`."""
        with torch.no_grad():
            return self.explore(self._last_obs)

    # -- the environment ---------------------------------------------------------------------------------------------

    def _reset_env(self) -> None:
        assert self.env is not None
        # A VecEnv keeps seeds and options of its next reset itself; a batch behind BatchedVecEnv is handed them.
        waiting = self.env.take_seeds_and_options() if isinstance(self.env, BatchedVecEnv) else {}
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

    def _streams(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self.generators.items()}

    def _load_streams(self, state: Mapping[str, Tensor]) -> None:
        group(dict.fromkeys(self.generators, array(None, "uint8")))(state, "generators")
        for name, generator in self.generators.items():
            write_torch(generator, state[name], f"generators[{name!r}]")

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

    def _sound_networks(self) -> dict[str, Tensor]:
        """:return: what files hold of the networks; a file that nobody could go on from is not written.

        :raises DivergedError: a number in them is not finite
        """
        state = self.modules.state()
        if (name := first_broken(state)) is not None:
            raise diverged(self, f"its weights {name} are not finite")
        return state

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
        :raises headway.agents.DivergedError: weights are NaN or infinite
        """
        if exclude or include:
            raise ValueError("Headway's files hold a fixed set of entries: exclude and include do not apply")
        contents.write_policy(path, self._manifest(), self._sound_networks(), self._normalizer_state())

    def _manifest(self) -> dict[str, Any]:
        return {
            "class": agent_name(type(self)),
            "policy": self.policy_name,
            "config": self.config.to_dict(),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "n_envs": self.n_envs,
            "env_id": self.env_id,
            "env_spec": spec_to_json(self.env_spec),
            "seed": self.seed,
            "seed_is_drawn": self.seed_is_drawn,
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            "episodes": self._episode_num,
            "stats_window_size": self._stats_window_size,
            "scaled_buffers": self.scales_buffers,
            "threads": torch.get_num_threads(),
            "versions": contents.versions(),
        }

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
        :param custom_objects: hyper-parameters to change, in Stable-Baselines3's spelling of ``overrides``
        :param print_system_info: print the versions that wrote the file
        :param force_reset: a loaded agent starts a new episode; :meth:`resume` does not
        :param overrides: hyper-parameters, ``seed``, ``verbose`` or ``tensorboard_log`` to change, and what the agent
            lists in :attr:`arguments`
        :return: the agent
        :raises FileFormatError: (a ``ValueError``) the file is broken, foreign, newer, or another agent's
        :raises ValueError: the environment's spaces differ from the policy's
        :raises TypeError: an override that is no hyper-parameter, or one that only says what weights begin with
        """
        if not force_reset:
            raise ValueError(f"a policy file holds no episode to go on with: use {cls.__name__}.resume(folder, env)")
        overrides = {**(custom_objects or {}), **overrides}
        for name in cls.only_initial:
            if name in overrides:
                raise TypeError(f"{name} says what weights begin with, and those are in the file: leave it out")
        read = contents.read(path, ("policy", "checkpoint"))
        if print_system_info:
            print("\n".join(f"{name}: {version}" for name, version in read.manifest["versions"].items()))
        return cls._from_contents(read, env, device, overrides)

    @classmethod
    def _from_contents(cls, read: Contents, env: Any, device: torch.device | str, overrides: dict[str, Any]) -> Self:
        """Make the agent that a file describes, and fill in its networks."""
        manifest, path = read.manifest, read.path
        if manifest["class"] != agent_name(cls):
            raise FileFormatError(
                f"{path} holds a {manifest['class']} agent, not {agent_name(cls)}: "
                f"use {manifest['class']}.load, or headway.agents.load for any agent"
            )
        plain = {name: overrides.pop(name) for name in _PLAIN if name in overrides}
        plain = {"seed": manifest["seed"], "stats_window_size": manifest["stats_window_size"]} | plain
        held = read.networks.values()
        numbers = sum(tensor.numel() for tensor in held)
        try:
            # As a configuration, never as keywords: a file that names "env" there must not choose what is imported.
            agent = cls(
                manifest["policy"],
                device=device,
                config=cls._configure(None, manifest["config"]),
                _init_setup_model=False,
                **plain,
                **overrides,
            )
            agent.seed_is_drawn |= plain["seed"] == manifest["seed"] and manifest.get("seed_is_drawn", False)
            agent.observation_space = space_from_json(manifest["observation_space"], numbers)
            agent.action_space = space_from_json(manifest["action_space"], numbers)
            agent.check_spaces(agent.observation_space, agent.action_space)
            agent.n_envs, agent.env_spec = manifest["n_envs"], _saved_spec(manifest)
        except (KeyError, TypeError, ValueError) as cause:
            if overrides:
                raise
            raise FileFormatError(f"{path} does not describe a {cls.__name__} of this version: {cause}") from cause
        agent.scales_buffers = manifest.get("scaled_buffers", cls.flattens)  # DCAC always did
        with reading(path):
            agent._statistics = None if read.normalizer is None else checked_state(read.normalizer)
        if env is not None:
            agent.attach_env(env)
        with nullcontext() if overrides else reading(path):  # an override may be at fault as well
            # One that changes networks may make them larger than those in the file.
            grown = overrides.keys() - {*cls.arguments, *cls.config_class.live}
            agent._budget = nullcontext() if grown else Budget(held)
            agent._setup_model()
            agent._budget = nullcontext()
        try:
            agent.modules.load_state(agent._networks_of(read))
        except ValueError as cause:
            reason = ", ".join(overrides) or "its own configuration"
            raise FileFormatError(f"{path} does not fit {reason}: {cause}") from cause
        agent.num_timesteps, agent._n_updates = manifest["num_timesteps"], manifest["n_updates"]
        agent._episode_num = manifest["episodes"]
        return agent

    def _networks_of(self, read: Contents) -> Mapping[str, Tensor]:
        """The weights in a file, without those of networks that begin anew under another configuration."""
        networks = dict(read.networks)
        for field, network in self.loads_afresh.items():
            if getattr(self.config, field) != self._configure(None, read.manifest["config"]).to_dict()[field]:
                networks = {name: weights for name, weights in networks.items() if not name.startswith(f"{network}.")}
                own = self.modules.state().items()
                networks |= {name: weights.clone() for name, weights in own if name.startswith(f"{network}.")}
        return networks

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Take up weights.

        :param load_path_or_dict: a policy file of this class, or what ``get_parameters`` returned
        :param exact_match: of a dict: all of it must be there
        :param device: of a dict
        :raises FileFormatError: (a ``ValueError``) the file is broken or foreign, or does not fit
        """
        if isinstance(load_path_or_dict, Mapping):
            super().set_parameters(dict(load_path_or_dict), exact_match, device)
            return
        read = contents.read(load_path_or_dict, ("policy", "checkpoint"))
        try:
            self.modules.load_state(read.networks)
        except ValueError as cause:
            raise FileFormatError(f"{read.path} does not fit this {type(self).__name__}: {cause}") from cause

    def save_checkpoint(self, directory: str | Path, *, extra: Any = None, keep: int | None = 2) -> Path:
        """Save everything that training needs: :meth:`resume` goes on as if it had never stopped, bit for bit on a CPU.

        Networks, targets, optimisers, every part that was registered (stores, random streams, counters, environments:
        see :func:`headway.wrappers.capture`; one that cannot be copied is restarted on resume, and the log says so).

        :param directory: where checkpoints lie; made if missing. Those of other runs there are left alone.
        :param extra: nested plain data of the caller's, given back as ``resumed_extra``
        :param keep: how many of this run's newest to keep; None keeps all
        :return: the file written
        :raises headway.agents.DivergedError: weights are NaN or infinite; earlier checkpoints are untouched
        :raises OSError: it could not be written; earlier checkpoints are untouched
        """
        networks = self._sound_networks()
        parts = {name: part.state() for name, part in self.parts.items()} | {"extra": extra}
        folder = Path(directory)
        run = choose_run(folder, self.num_timesteps, self.run_numbers.get(folder.resolve()))
        path = contents.write_checkpoint(folder, self._manifest(), networks, parts, keep, run)
        self.run_numbers[folder.resolve()] = run
        self.last_checkpoint = path
        return path

    @classmethod
    def resume(
        cls,
        directory: str | Path,
        env: Any = None,
        device: torch.device | str = "auto",
        *,
        trust_env: bool = False,
        **options: Any,
    ) -> Self:
        """Go on from the newest complete checkpoint, of the newest run where several have saved.

        ``agent.learn(agent.remaining_timesteps, reset_num_timesteps=False)`` then finishes the run.

        Versions and threads other than those of the run are mentioned in the log: sums may then round differently.

        :param directory: where checkpoints lie, or the folder of a run of ``headway train``
        :param env: an environment built as the interrupted one was; made from its spec where that was saved
        :param device: where to load it
        :param trust_env: make the environment of the saved spec even if that imports modules that are not imported
            already, or writes files
        :param options: ``verbose`` or ``tensorboard_log``, what the agent lists in :attr:`arguments`, and
            hyper-parameters that may change while it trains (its configuration's ``live``)
        :return: the agent
        :raises TypeError: an option that would make it another run
        :raises FileNotFoundError: no complete checkpoint there
        :raises FileFormatError: (a ``ValueError``) it is another agent's
        """
        for name in options.keys() - {"verbose", "tensorboard_log", *cls.arguments, *cls.config_class.live}:
            raise TypeError(f"resume goes on with the run as it was, {name} included: leave it out, or use load")
        directory = Path(directory)
        if not list_checkpoints(directory) and (directory / "checkpoints").is_dir():
            directory /= "checkpoints"
        read = contents.read_newest(directory)
        manifest, path = read.manifest, read.path
        if env is None and not cls.arguments:
            env = _saved_env(read, trust_env)
        agent = cls._from_contents(read, env, device, dict(options))
        if agent.n_envs != manifest["n_envs"]:
            raise ValueError(f"{path} was saved with {manifest['n_envs']} environments, env has {agent.n_envs}")
        contents.mention_versions(path, manifest)
        if manifest["threads"] != torch.get_num_threads():
            log.warning(
                "saved with %d torch threads, resuming with %d: sums may round differently (torch.set_num_threads)",
                manifest["threads"],
                torch.get_num_threads(),
            )
        if read.parts.keys() != agent.parts.keys() | {"extra"}:
            odd = sorted(read.parts.keys() ^ (agent.parts.keys() | {"extra"}))
            raise FileFormatError(f"{path} does not hold just what {cls.__name__} needs to go on: {', '.join(odd)}")
        for name, part in agent.parts.items():
            with reading(f"{path}, {name}"):
                part.load_state(read.parts[name])
        agent.resumed_extra, agent.last_checkpoint = read.parts["extra"], Path(path)
        agent.run_numbers = {Path(directory).resolve(): run_of(path)}
        return agent


guard(ActorCriticAgent)


def _over(rows: Tensor, part: Tensor) -> Tensor:
    """:return: flags (B,) as (B, 1, …), to select rows of a part."""
    return rows.view(-1, *[1] * (part.dim() - 1))


def _training_env(env: Any, check: Callable[[spaces.Space[Any], spaces.Space[Any]], None]) -> VecEnv:
    """Whatever the user gave, as the VecEnv that Stable-Baselines3's base class expects.

    :param check: of its spaces, before anybody else's code meets them
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


def _saved_spec(manifest: Mapping[str, Any]) -> EnvSpec | None:
    """The spec that a file holds of its environment; earlier versions wrote a name instead."""
    if (text := manifest.get("env_spec")) is not None:
        return spec_from_json(text)
    return named(manifest["env_id"]) if manifest.get("env_id") and "env_spec" not in manifest else None


def _saved_env(read: Contents, trusted: bool) -> Any:
    """Make the environment that a checkpoint was saved with."""
    manifest, path, rows = read.manifest, read.path, read.manifest["n_envs"]
    with reading(path):
        spec = _saved_spec(manifest)
    if spec is None:
        raise ValueError(
            f"{path} was saved with {rows} environments of id {manifest.get('env_id')}: pass env=, built as it was then"
        )
    if not trusted and (what := unasked(spec)) is not None:
        raise ValueError(
            f"{path} was saved with environment {one_line(inner_id(spec))}, which would {one_line(what)}: pass env=, "
            "import the module first, or, if you trust the file, pass trust_env=True"
        )
    shown = read.parts.get("environment")
    seen = shown.get("obs") if isinstance(shown, Mapping) else None
    if rows != 1 and (not isinstance(seen, (Tensor, Mapping)) or _rows_of(seen) != rows):
        raise FileFormatError(f"{path} names {rows} environments, but does not hold as many: pass env=")
    if rows == 1 or is_batch(spec):
        return make_spec(spec, rows)
    return DummyVecEnv([lambda: Monitor(make_single(spec))] * rows)


def _rows_of(obs: Any) -> int | None:
    """:return: how many rows saved observations have; None: they are none"""
    parts = list(obs.values()) if isinstance(obs, Mapping) else [obs]
    sizes = {len(part) if isinstance(part, Tensor) and part.dim() else None for part in parts}
    return sizes.pop() if len(sizes) == 1 else None
