"""The base of agents that learn from data that are there already."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...envs.schema import group, maybe, whole
from ...wrappers.spaces_only import SpacesOnlyVecEnv
from ...wrappers.specs import named
from .agent import ActorCriticAgent
from .config import AgentConfig
from .data import Collector, GradientSteps, Transitions
from .environment import read_alike
from .loop import Part
from .nets import BoundedGaussian, Categorical, DensityActor
from .spaces import Obs, ObservationCodec, count_rows, map_obs, shown

CHUNK = 65_536
"""Rows that are evaluated together in a sweep over all data."""

NORMALISED_CLIP = 10.0
"""Bound on normalised observations, in standard deviations, as VecNormalize's."""


class Dataset(Protocol):
    """Recorded steps, all of them, in the order of time, one episode after the other."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def transitions(self, codec: ObservationCodec) -> Mapping[str, Any]:
        """:return: the fields of :class:`Transitions`, observations encoded, the environment's actions, (R, …)"""


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(AgentConfig):
    """What agents that learn from data add."""

    normalize_obs: bool = False
    """Shift and scale observations by their mean and standard deviation in the data, and clip them to [-10, 10]. The
    statistics stay as they are, and are in the policy's file. Without data, observations are left as they are."""


C = TypeVar("C", bound=OfflineConfig)


class OfflineAgent(ActorCriticAgent[C]):
    """An agent that learns from a dataset and needs no environment; a step of ``learn`` is then a gradient step.

    Its environment is then one of spaces alone, so that Stable-Baselines3's callbacks, its progress bar, ``set_env``
    and ``load`` work; an ``EvalCallback`` takes a real one. ``log_interval`` counts thousands of gradient steps. The
    data are not part of checkpoints: ``resume`` takes them anew. :mod:`.offline_to_online` has the base of those that
    can go on in an environment.

    :param dataset: what to learn from; not needed to predict
    :param seeds: train several at once, of these seeds, as one stack of networks; see :meth:`member`
    """

    arguments: ClassVar[tuple[str, ...]] = ("dataset", "seeds")
    goes_online: ClassVar[bool] = False
    """Whether it can go on in an environment."""

    dataset: Dataset | None
    seeds: Sequence[int] | None
    data: Transitions | None
    """All of the data on the agent's device, (R, …)."""
    members: list[Self]
    """The agents of a stack, whose networks are behind it: see :meth:`member`."""

    # -- what it learns from -----------------------------------------------------------------------------------------

    @property
    def is_offline(self) -> bool:
        """Whether it has no environment but that of the data's spaces."""
        return self.env is None or isinstance(self.env.unwrapped, SpacesOnlyVecEnv)

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes of networks, batches and noise: (S,) where S seeds are trained at once, else ()."""
        return () if self.seeds is None else (len(self.seeds),)

    def _default_env(self) -> Any:
        if self.dataset is None:
            return None
        if not hasattr(self.dataset, "transitions"):
            raise TypeError(f"dataset must be recorded steps, a headway.agents.Dataset for one, got {self.dataset!r}")
        return SpacesOnlyVecEnv(self.dataset.observation_space, self.dataset.action_space)

    def _setup_model(self) -> None:
        self.data = None
        self._encoded: Mapping[str, Any] | None = None
        if self.seeds is not None:
            self._check_seeds(self.seeds)
        if self.env_spec is None and (env_id := getattr(self.dataset, "env_id", None)) is not None:
            self.env_spec = named(env_id)
        super()._setup_model()
        if self.dataset is not None:
            self.data = self._load_data(self.dataset)
            self._encoded = None
        self.register("data", Part(self._data_state, self._check_data))
        if self.seeds is not None:
            self._make_members(self.seeds)

    def _encode(self, dataset: Dataset) -> Mapping[str, Any]:
        """:return: the dataset's fields; read once while the agent is made."""
        if self._encoded is None:
            seen = self._wrap_env(SpacesOnlyVecEnv(dataset.observation_space, dataset.action_space))
            for name in ("observation_space", "action_space"):
                if not read_alike(getattr(seen, name), getattr(self, name)):
                    raise ValueError(
                        f"the dataset's {name.replace('_', ' ')} is {shown(getattr(dataset, name))}, this "
                        f"{type(self).__name__} was made for {shown(getattr(self, name))}"
                    )
            fields = dict(dataset.transitions(self.codec))
            if not len(fields["rewards"]):
                raise ValueError("the dataset has no steps to learn from")
            self._encoded = fields | {name: self._channels_first(fields[name]) for name in ("obs", "next_obs")}
        return self._encoded

    def _channels_first(self, obs: Obs) -> Obs:
        """:return: encoded observations with images as an environment's are wrapped to be, (R, C, H, W)"""
        given = {next(iter(self.codec.fields)): obs} if isinstance(obs, Tensor) else obs
        turned = {
            name: part if part.shape[1:] == self.codec.fields[name].shape else part.permute(0, 3, 1, 2)
            for name, part in given.items()
        }
        return turned if len(turned) > 1 else next(iter(turned.values()))

    def _load_data(self, dataset: Dataset) -> Transitions:
        """:return: the data as they are drawn from; an agent that needs more fields overrides this."""
        rows = dict(self._encode(dataset))
        actions = self.actions.from_env(rows.pop("actions").to(self.device)).to(self.actions.field.dtype)
        if tuple(actions.shape[1:]) != self.actions.field.shape:
            raise ValueError(f"the dataset's actions are {tuple(actions.shape[1:])}, {self.action_space} has others")
        moved: Any = {name: map_obs(lambda part: part.to(self.device), values) for name, values in rows.items()}
        return Transitions(actions=actions, **moved)

    def need_data(self) -> Any:
        """:return: ``data``

        :raises ValueError: there are none
        """
        if self.data is None:
            raise ValueError(f"{type(self).__name__} has no data to learn from: pass dataset=")
        return self.data

    def _data_state(self) -> dict[str, int | None]:
        return {"rows": None if self.data is None else len(self.data.rewards)}

    def _check_data(self, state: Any) -> None:
        """See that a run goes on with data of as many steps: they are not in its checkpoint."""
        group({"rows": maybe(whole(1))})(state, "the data")
        if state != (found := self._data_state()):
            raise ValueError(
                f"the run learnt from {state['rows'] or 'no'} steps of data, this agent has {found['rows'] or 'none'}: "
                "pass the same dataset="
            )

    def draw(self, rows: int) -> Any:
        """Draw from the data, uniformly, with replacement.

        :param rows: B
        :return: a batch of the type of ``data``, (*stack, B, …)
        :raises ValueError: there are no data
        """
        data = self.need_data()
        at = self.draw_rows(len(data.rewards), rows)
        return picked(data, at)

    def draw_rows(self, below: int, count: int) -> Tensor:
        """:return: numbers of rows, uniformly, with replacement, (*stack, count)"""
        return self._for_each(lambda streams: self._integers(below, count, streams["store"]))

    def _integers(self, below: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(below, (count,), generator=generator, device=self.device)

    def _for_each(self, draw: Callable[[Mapping[str, torch.Generator]], Tensor]) -> Tensor:
        """:return: random numbers from the agent's streams; from each member's, (S, …), in a stack."""
        if not self.stack:
            return draw(self.generators)
        return torch.stack([draw(member.generators) for member in self.members])

    def sample(self, rows: int | None = None) -> Any:
        """:return: a batch of ``batch_size`` rows, or so many, of the data, (*stack, B, …)"""
        return self.draw(self.config.batch_size if rows is None else rows)

    def noise(self, *shape: int) -> Tensor:
        """:return: standard normal numbers for an update, (*stack, *shape)"""
        return self._for_each(lambda streams: torch.randn(shape, generator=streams["update"], device=self.device))

    def features(self) -> nn.Module:
        """Build the first stage of a network, as :meth:`ObservationCodec.features`; with ``normalize_obs`` it scales.

        :return: a module with an attribute ``features_dim``
        :raises ValueError: there is more than one vector to scale
        """
        features = self.codec.features()
        if not self.config.normalize_obs:
            return features
        if list(self.codec.fields) != [self.codec.vector]:
            raise ValueError(f"normalize_obs scales vectors, and this is {self.observation_space}: leave it out")
        return standardised(features, None if self.dataset is None else self._encode(self.dataset)["obs"])

    def attach_env(self, env: Any) -> None:
        """See :meth:`ActorCriticAgent.attach_env`; an environment of spaces alone is where the data come from."""
        recorded_in = self.env_spec
        super().attach_env(env)
        if self.is_offline:
            self.env_spec = recorded_in

    def _env_state(self) -> dict[str, Any] | None:
        return None if self.is_offline else super()._env_state()

    def _load_env_state(self, state: Mapping[str, Any] | None) -> None:
        if not self.is_offline:
            super()._load_env_state(state)

    # -- learning ----------------------------------------------------------------------------------------------------

    def _make_collector(self) -> Collector:
        return GradientSteps(self)

    def _connect_env(self) -> None:
        super()._connect_env()
        if not self.is_offline and not self.goes_online:
            raise ValueError(
                f"{type(self).__name__} learns from data alone: leave the environment out, and evaluate with "
                "evaluate_policy(agent, env) or an EvalCallback"
            )

    def begin_gradient_step(self) -> None:
        """Count a gradient step, log when it is time, and make it the next thing to do.

        :raises ValueError: there are no data
        """
        self.need_data()
        self.num_timesteps += 1
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._log_between((self.num_timesteps - 1) // 1000, self.num_timesteps // 1000)
        self.end_round(1)

    # -- several seeds at once ---------------------------------------------------------------------------------------

    def _check_seeds(self, seeds: Any) -> None:
        if not isinstance(seeds, Sequence) or not all(isinstance(seed, int) for seed in seeds):
            raise TypeError(f"seeds must be several integers, got {seeds!r}: seeds=[0, 1, 2], or seed=0 for one")
        if len(set(seeds)) != len(seeds) or not seeds:
            raise ValueError(f"seeds must be one at least, and different from each other, got {list(seeds)}")

    def _make_members(self, seeds: Sequence[int]) -> None:
        if list(self.codec.fields) != [self.codec.vector]:
            raise ValueError(f"seeds are trained at once on vectors, and this is {self.observation_space}: one by one")
        env = SpacesOnlyVecEnv(self.observation_space, self.action_space)
        config, device = self.config, self.device
        made: Any = [type(self)(self.policy_name, env, config=config, seed=seed, device=device) for seed in seeds]
        self.members = made
        own = self.modules.state()
        with torch.no_grad():
            for index, member in enumerate(self.members):
                for name, tensor in member.modules.state().items():
                    if own[name].shape == tensor.shape:  # of all members: statistics of the data
                        tensor.copy_(own[name])
                    else:
                        own[name][index].copy_(tensor)

    def take_up(self, members: Sequence[Self]) -> None:
        """Go on with agents that were trained, or resumed, one by one.

        :param members: as many as there are seeds, of the same configuration and at the same step
        :raises ValueError: they are not
        """
        if self.stack != (len(members),) or any(member.config != self.config for member in members):
            raise ValueError(
                f"a stack of {self.stack[0] if self.stack else 'one agent, not of several,'} takes up as many members "
                f"of its own configuration, got {len(members)}"
            )
        if len({(m.num_timesteps, m.updates) for m in members}) > 1:
            raise ValueError("a stack goes on from one step, and its members are at different ones: resume them alone")
        own = self.modules.state()
        with torch.no_grad():
            for index, member in enumerate(members):
                for name, tensor in member.modules.state().items():
                    (own[name] if own[name].shape == tensor.shape else own[name][index]).copy_(tensor)
        self.members = list(members)
        first = members[0]
        self._load_counters(first._counters())

    def member(self, index: int) -> Self:
        """Bring one of a stack up to date: an agent like any other, to be evaluated, saved and resumed by itself.

        :param index: which
        :return: it
        """
        member, own = self.members[index], self.modules.state()
        with torch.no_grad():
            for name, tensor in member.modules.state().items():
                tensor.copy_(own[name] if own[name].shape == tensor.shape else own[name][index])
        member._load_counters(self._counters() | {"seed": member.seed})
        member.data, member.dataset = self.data, self.dataset
        return member

    def _predict_actions(self, obs: Obs, *args: Any) -> Any:
        self._refuse_stack("has no single policy")
        return super()._predict_actions(obs, *args)

    def _sound_networks(self) -> dict[str, Tensor]:
        self._refuse_stack("is not saved as one")
        return super()._sound_networks()

    def _refuse_stack(self, why: str) -> None:
        if self.stack:
            raise ValueError(f"an agent of several seeds {why}: use agent.member(i), for i below {self.stack[0]}")


def density_policy(agent: OfflineAgent[Any]) -> BoundedGaussian | Categorical:
    """:return: the distribution of an agent's actions, whose density can be asked for at the data's"""
    if agent.actions.choices is None:
        return BoundedGaussian(agent.actions.size, stack=agent.stack)
    return Categorical(agent.actions.choices, stack=agent.stack)


def act(actor: DensityActor, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
    """Choose actions, as :meth:`ActorCriticAgent._act`.

    :param actor: the policy
    :return: (B, A) in [-1, 1], or (B,) int64
    """
    if deterministic:
        return actor.mode(obs)
    actions = actor.sample(obs, actor.policy.noise(count_rows(obs), generator))[0]
    return actions.clamp(-1, 1) if actions.is_floating_point() else actions


class Standardised(nn.Module):
    """Observations minus their mean over their standard deviation, clipped, before what reads them.

    :param features: what reads them
    :param mean: (D,)
    :param std: (D,); a column without variance is only shifted
    :param limit: of their size afterwards
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, features: nn.Module, mean: Tensor, std: Tensor, limit: float = NORMALISED_CLIP) -> None:
        super().__init__()
        self.features, self.features_dim = features, features.features_dim
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 1e-6, std, 1.0))
        self.register_buffer("limit", torch.tensor(limit))

    def forward(self, obs: Tensor) -> Tensor:
        """:return: features of observations (…, B, D)"""
        scaled = ((obs - self.mean) / self.std).clamp(-self.limit, self.limit)
        return self.features(scaled)  # type: ignore[no-any-return]


def standardised(features: nn.Module, obs: Tensor | None) -> Standardised:
    """Standardise what is read by the statistics of the data.

    :param features: what reads it
    :param obs: all of the data, (R, D); None: there are none, and nothing is changed
    :return: both
    """
    if obs is None:
        dim = int(features.features_dim)  # type: ignore[arg-type]
        return Standardised(features, torch.zeros(dim), torch.ones(dim), torch.finfo(torch.float32).max)
    obs = obs.double()
    return Standardised(features, obs.mean(0).float(), obs.std(0, correction=0).float())


def in_chunks(function: Callable[..., Tensor], *rows: Obs) -> Tensor:
    """Apply a function to many rows, so many at a time.

    :param function: takes (B, …) each, and gives (*stack, B)
    :param rows: (R, …) each
    :return: (*stack, R)
    """

    def cut(first: int) -> list[Obs]:
        return [map_obs(lambda part: part[first : first + CHUNK], given) for given in rows]

    return torch.cat([function(*cut(first)) for first in range(0, count_rows(rows[0]), CHUNK)], -1)


def picked(data: Any, at: Tensor) -> Any:
    """:return: rows ``at`` (*stack, B) of every field, (*stack, B, …)"""

    def pick(part: Tensor) -> Tensor:
        return part.index_select(0, at.view(-1)).view(*at.shape, *part.shape[1:])

    return type(data)(**{field.name: map_obs(pick, getattr(data, field.name)) for field in fields(data)})


def joined(one: Transitions, other: Transitions) -> Transitions:
    """:return: the rows of both, (B + B', …)"""
    parts: Any = {
        field.name: joined_rows(*(getattr(part, field.name) for part in (one, other))) for field in fields(one)
    }
    return replace(one, **parts)


def joined_rows(one: Obs, other: Obs, axis: int = 0) -> Obs:
    """:return: rows of both, one after the other; they are counted along an axis"""
    if isinstance(one, Tensor):
        assert isinstance(other, Tensor)
        return torch.cat((one, other), axis)
    assert not isinstance(other, Tensor)
    return {name: torch.cat((part, other[name]), axis) for name, part in one.items()}
