"""The base of every agent: Stable-Baselines3's interface, the constructor, what a concrete agent fills in, acting."""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ...envs.generators import write_torch
from ...envs.schema import array, group
from ...wrappers.snapshot import global_streams, set_global_streams
from ...wrappers.specs import spec_of
from .attributes import expose, guard
from .config import AgentConfig
from .environment import as_training_env
from .loop import Part
from .nets import Optimiser, Tracked, TrackedModules, check_precision
from .normalization import normalised_keys
from .policy import AgentPolicy, Memory
from .registry import register_agent
from .saving import SavedAgent
from .sb3_names import POLICIES, as_fields, check_policy, check_subclass, policy_fields
from .spaces import Obs, ObservationCodec, actions_of, count_rows

PURPOSES = ("collect", "update", "store", "predict")
"""One stream each: evaluating a policy, say, must not change how it goes on exploring."""

C = TypeVar("C", bound=AgentConfig)
M = TypeVar("M", bound=nn.Module)


class ActorCriticAgent(SavedAgent, Generic[C]):
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
    execution: ClassVar[tuple[str, ...]] = ()
    """Likewise, of what only says where a run is computed: no part of what is learnt, and never in files."""
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
        for name in (*self.arguments, *self.execution):
            setattr(self, name, hyper.pop(name, None))
        check_policy(policy, None)
        networks = policy_fields(policy, self.config_class, self.shares_features, policy_kwargs or {})
        self.config = self._configure(config, as_fields(self.config_class, hyper) | networks)
        self.policy_name = policy
        self._made_env = env is None or isinstance(env, str)
        env = self._default_env() if env is None else env
        training_env = None if env is None else as_training_env(env, self.check_spaces)
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
        self._reward_unit = 1.0
        """Of the run that a loaded policy comes from."""
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

    @property
    def reward_unit(self) -> float:  # type: ignore[override]
        """What of the environment's reward is 1 to the agent: more than that where rewards are scaled in training."""
        source = self._vec_normalize_env
        if source is None or not source.norm_reward:
            return self._reward_unit
        return float(np.sqrt(source.ret_rms.var + source.epsilon))

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

    def _seed_global_streams(self, seed: int) -> None:
        set_random_seed(seed, using_cuda=self.device.type == "cuda")

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

    # -- random streams ----------------------------------------------------------------------------------------------

    def _streams(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self.generators.items()}

    def _load_streams(self, state: Mapping[str, Tensor]) -> None:
        group(dict.fromkeys(self.generators, array(None, "uint8")))(state, "generators")
        for name, generator in self.generators.items():
            write_torch(generator, state[name], f"generators[{name!r}]")


guard(ActorCriticAgent)


def _over(rows: Tensor, part: Tensor) -> Tensor:
    """:return: flags (B,) as (B, 1, …), to select rows of a part."""
    return rows.view(-1, *[1] * (part.dim() - 1))
