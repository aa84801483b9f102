"""What agents share whose policies are a population: generations of whole episodes, the search, its account."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ...envs.schema import array, flag, group, whole
from ...wrappers import Playback, WholeEpisodes
from ..core.agent import ActorCriticAgent
from ..core.config import AgentConfig, Count, Fraction, Positive, Range
from ..core.data.stepping import Step, take_step
from ..core.loop import Part
from ..core.nets import Actor
from ..core.seeds import spawn_seed
from ..core.spaces import Obs
from .cem import CEMSearch
from .distributed import Workers, check_workers
from .population import Population, flatten, unflatten

ORIGINS = ("elite", "screened", "random", "learner")
"""Where a member of a population comes from."""

COLUMNS: Mapping[str, Sequence[tuple[str, str, int, str]]] = {
    "": (("gen", "generation", 4, "{:,.0f}"), ("steps", "timesteps", 9, "{:,.0f}")),
    "return": (("best", "best_return", 8, "{:,.1f}"), ("mean", "mean_return", 8, "{:,.1f}")),
    "learner": (
        ("return", "learner_return", 8, "{:,.1f}"),
        ("rank", "learner_rank", 4, "{:.0f}"),
        ("beta", "beta", 6, "{:.4g}"),
    ),
    "parents, by origin": (
        ("elite", "parents_elite", 5, "{:.0%}"),
        ("screened", "parents_screened", 8, "{:.0%}"),
        ("random", "parents_random", 6, "{:.0%}"),
        ("learner", "parents_learner", 7, "{:.0%}"),
    ),
    "search": (("corr.", "rank_correlation", 5, "{:+.2f}"), ("width", "width", 6, "{:.4f}")),
}
"""Of the table of generations, by the head above them: title, what is logged, width, form. beta is shown while the
learner is guided; corr. is the rank correlation of the critic's scores with the returns."""

HEAD = 20
"""Generations between heads of the table."""


@dataclass(frozen=True, kw_only=True)
class PopulationConfig(AgentConfig):
    """The search and its generations. Defaults are those of the program released with PGPS."""

    net_arch: tuple[Count, ...] = (400, 300)
    """Hidden layer widths of actor and critics."""

    activation: Literal["relu", "tanh", "elu"] = "elu"
    """Non-linearity between layers."""

    population_size: Count = 10
    """Members of a generation (P)."""

    member_episodes: Count = 1
    """Episodes of each member in a generation; its fitness is their mean return."""

    n_parents: Count | None = None
    """Members that the next generation follows (L); none: half of them, rounded down."""

    initial_variance: Positive = 7.5e-3
    """Of every weight, and the first noise floor."""

    final_variance: Positive = 1e-5
    """Where the noise floor tends to."""

    variance_decay: Fraction = 0.03
    """Share of the way to it that the noise floor goes in a generation."""

    elitism: bool = True
    """The best member of a generation is in the next."""

    mirror_sampling: bool = False
    """Draw members in pairs around the mean (CEM-RL's)."""

    inverse_parents: bool = True
    """Divide the parents' variance by their number, although their weights sum to 1 already, as the released programs
    do: the width of the search is then little more than a schedule. An accident that is kept, since all published
    curves come from it."""

    horizon: Annotated[int, Range(1, unit="steps")] | None = 1000
    """Where a member's episode is cut; none: where the environment does it."""

    initial_horizon: Annotated[int, Range(1, unit="steps")] | None = 400
    """Where it is cut at the start of training; none: at the horizon from the start."""

    horizon_growth: Annotated[int, Range(0, unit="steps")] = 100
    """What is added to it after each ``horizon_interval``."""

    horizon_interval: Annotated[int, Range(1, unit="environment steps")] = 100_000
    """See ``horizon_growth``."""

    acts: Literal["mean", "elite"] = "mean"
    """Which policy predicts, is evaluated and is saved to be used: the middle of the search, or the last generation's
    best (of one noisy episode)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_parents is not None and self.n_parents > self.population_size:
            raise ValueError(
                f"{self._label('n_parents')} must be at most population_size, {self.population_size}, "
                f"got {self.n_parents}"
            )

    @property
    def episodes(self) -> int:
        """Of a generation."""
        return self.population_size * self.member_episodes

    @property
    def default_envs(self) -> int:  # type: ignore[override]
        """A row for each episode of a generation, which can all be played at the same time."""
        return self.episodes


C = TypeVar("C", bound=PopulationConfig)


class PopulationAgent(ActorCriticAgent[C]):
    """An agent whose members each play whole episodes, N at a time in the rows of its environment.

    It has the networks ``mean`` and ``elite``, which a search over their weights moves, and fills in :meth:`breed` and
    what follows a generation, :meth:`phases`. Episode ``e`` of a generation is seeded by the run's seed and these two
    numbers alone, so that its returns depend neither on the number of rows nor on their order.

    :param workers: how many workers of Ray play the members' episodes, which are then gone through as if they were
        played here; None or 0: they are
    :param ray_address: of the Ray cluster that they are in; None: the one that Ray is connected to, or RAY_ADDRESS
        names, or else this machine
    """

    collector: "GenerationCollector"
    execution = ("workers", "ray_address")
    workers: int | None
    ray_address: str | None
    _workers: Workers | None = None

    shown: ClassVar = frozenset(
        {"generation", "timesteps", "best_return", "mean_return", "parents_elite", "parents_random", "width"}
    )
    """What the table of generations has columns for."""

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """See :meth:`ActorCriticAgent.check_spaces`; images would have networks of their own."""
        super().check_spaces(observation_space, action_space)
        parts = observation_space.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
        for part in parts:
            if isinstance(part, spaces.Box) and len(part.shape) > 1 and part.dtype == "uint8":
                raise ValueError(
                    f"{cls.__name__} searches among policies that read vectors, the environment shows images of shape "
                    f"{part.shape}: let the environment show features instead"
                )

    def _setup_model(self) -> None:
        cfg = self.config
        check_workers(type(self).__name__, self.workers, self.ray_address)
        limit = None if self.env_spec is None else self.env_spec.max_episode_steps
        if cfg.horizon is None and limit is None and self.env is not None:
            raise ValueError(
                f"{type(self).__name__}.horizon is None, and nothing says that episodes of {self.env_id} end: "
                "give a horizon in steps"
            )
        self.generation = self.played = 0
        """Generations that have moved the search, and all that were played, those of random actions among them."""
        self.told: dict[str, float] = {}
        """What was logged of the last generation."""
        self._lines = 0
        self.members = torch.zeros(0)
        self.is_bred = False
        """Whether :attr:`members` are the next generation's; else the last one's."""
        self.origins = torch.full((cfg.population_size,), ORIGINS.index("random"))
        super()._setup_model()
        self.search = CEMSearch(
            flatten(self.mean.module),
            cfg.population_size,
            self.generators["collect"],
            parents=cfg.n_parents,
            variance=cfg.initial_variance,
            final_variance=cfg.final_variance,
            decay=cfg.variance_decay,
            elitism=cfg.elitism,
            mirror=cfg.mirror_sampling,
            inverse_parents=cfg.inverse_parents,
        )
        self.members = torch.zeros(cfg.population_size, len(self.search.mean), device=self.device)
        self._acting: tuple[int, Population] | None = None
        self.register("search", self.search)
        self.register("population", Part(self._population, self._load_population))

    def _connect_env(self) -> None:
        super()._connect_env()
        if self.env is not None:
            self.episodes_env = self.batched_env = WholeEpisodes(self.batched_env)

    def _track_search(self, actor: Actor) -> None:
        """Register the middle of the search and its elite, which begin as an actor is."""
        self.mean = self.track("mean", deepcopy(actor), frozen=True)
        self.elite = self.track("elite", deepcopy(actor), frozen=True)

    def _make_collector(self) -> "GenerationCollector":
        return GenerationCollector(self, self.config.episodes)

    # -- playing -----------------------------------------------------------------------------------------------------

    def learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Self:
        """See :meth:`LearningLoop.learn`; workers are there as long as it takes.

        :raises ConnectionError: no Ray cluster answers, or too many workers were lost
        """
        check_workers(type(self).__name__, self.workers, self.ray_address)
        if not self.workers or self.env is None:
            return super().learn(total_timesteps, *args, **kwargs)
        if self.normalizer is not None:
            raise ValueError(
                "the statistics of VecNormalize follow each step in its turn, which workers cannot: leave out one or "
                "the other"
            )
        count = min(self.workers, self.config.population_size)
        rows = -(-self.config.population_size // count) * self.config.member_episodes
        single = deepcopy(self.mean.module).cpu()
        name, inner = type(self).__name__, self.episodes_env.env
        self._workers = Workers(name, count, self.ray_address, inner, single, self.codec, rows)
        try:
            return super().learn(total_timesteps, *args, **kwargs)
        finally:
            self._workers.close()
            self._workers = None

    def fetch(self, horizon: int) -> bool:
        """Let workers play the generation, if there are any and it is the members' own.

        :param horizon: where its episodes are cut
        :return: whether to go on; not if it was asked to stop meanwhile
        """
        self.episodes_env.playback = None
        if self._workers is None or self.collector.is_random:
            return True
        members, each = self.members.cpu(), self.config.member_episodes
        if self.n_envs % each:  # then rows here act one by one
            members, each = members.repeat_interleave(each, 0), 1
        seed = spawn_seed(self.seed or 0, "generation", self.played)
        played = self._workers.play(members, each, horizon, seed, lambda: self.stop_requested)
        if played is None:
            return False
        assert played.steps is not None
        steps = {name: played.steps[name] for name in ("obs", "chosen", "rewards")}
        names = ("lengths", "returns", "terminated", "truncated", "final_obs", "successes")
        content = steps | {name: getattr(played, name) for name in names}
        self.episodes_env.playback = Playback(self.episodes_env.env, content)
        return True

    def next_horizon(self) -> int:
        """:return: where the episodes of a generation that begins now are cut"""
        cfg = self.config
        last = cfg.horizon or 2**62
        if cfg.initial_horizon is None:
            return last
        return min(last, cfg.initial_horizon + cfg.horizon_growth * (self.num_timesteps // cfg.horizon_interval))

    def breed(self) -> None:
        """Make :attr:`members` and :attr:`origins` of the next generation."""
        self.members.copy_(self.search.ask())
        self.origins.fill_(ORIGINS.index("random"))
        if self.config.elitism and self.search.elite is not None:
            self.origins[0] = ORIGINS.index("elite")

    def begin_generation(self) -> None:
        """Breed, unless that is done, around what the middle of the search is now: somebody may have loaded it."""
        mean = flatten(self.mean.module)
        if not torch.equal(mean, self.search.mean):
            self.search.mean = mean
        if not self.is_bred:
            self.breed()
            self.is_bred = True
        self._acting = None

    def begin_round(self, first: int, horizon: int) -> None:
        """Start the episodes of a generation from one on, as many as there are rows.

        :param first: number of the first
        :param horizon: where they are cut
        """
        seed = spawn_seed(self.seed or 0, "generation", self.played) + first
        if (playback := self.episodes_env.playback) is not None:
            playback.begin(first)
        self._reset_env([seed + row for row in range(self.n_envs)])
        self.episodes_env.horizon = horizon
        self.episodes_env.rest(self.config.episodes - first)

    def plays_at_random(self) -> bool:
        """:return: whether the generation that begins now tries the environment instead of its members"""
        return False

    def keep(self, step: Step) -> None:
        """Store a step; nothing is kept where returns are all that counts."""

    def choose(self) -> dict[str, Tensor]:
        """See :meth:`ActorCriticAgent.choose`."""
        if self.collector.is_random:
            return {"actions": self.actions.random(self.n_envs, self.generators["collect"])}
        return super().choose()

    def explore(self, obs: Obs) -> dict[str, Tensor]:
        """Every row's member acts; see :meth:`ActorCriticAgent.explore`."""
        if (playback := self.episodes_env.playback) is not None:
            return {"actions": playback.chosen.to(self.device)}
        first = self.collector.first
        if self._acting is None or self._acting[0] != first:
            rows = torch.arange(first, first + self.n_envs, device=self.device).clamp(max=self.config.episodes - 1)
            population = Population(self.mean.module, self.members)
            self._acting = (first, population.of(rows, self.config.member_episodes))
        assert isinstance(obs, Tensor)
        return {"actions": self._acting[1].act(obs)}

    def _reset_env(self, seeds: list[int | None] | None = None) -> None:
        super()._reset_env(seeds)
        self.collector.is_playing = False  # unless it was who asked: these are not its episodes

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        actor: Actor = getattr(self, self.config.acts).module
        return actor.mode(obs)

    # -- after a generation ------------------------------------------------------------------------------------------

    def end_round(self, collected: int) -> None:
        """See :meth:`LearningLoop.end_round`."""
        self.played += 1
        super().end_round(collected)

    def tell(self) -> dict[str, Tensor]:
        """Move the search by what the members have earned.

        :return: what is to be logged of the generation, by its full name
        """
        fitness = self.collector.fitness.view(-1, self.config.member_episodes).mean(1).float()
        order = self.search.tell(self.members, fitness)
        assert self.search.elite is not None
        unflatten(self.search.mean, self.mean.module)
        unflatten(self.search.elite, self.elite.module)
        self.generation, self.is_bred = self.generation + 1, False
        parents = self.origins.to(order.device)[order[: self.search.parents]]
        return {
            "generation": torch.tensor(float(self.generation)),
            "timesteps": torch.tensor(float(self.num_timesteps)),
            "best_return": fitness.max(),
            "mean_return": fitness.mean(),
            "width": self.search.width,
            "horizon": torch.tensor(float(min(self.collector.horizon, 10**9))),
            **{f"parents_{name}": (parents == code).float().mean() for code, name in enumerate(ORIGINS)},
        }

    def log_generation(self, told: Mapping[str, Tensor]) -> None:
        """Log what a generation did, and keep it for who watches.

        :param told: scalars by name
        """
        self.told = {name: float(value) for name, value in told.items()}
        self.metrics.add({f"population/{name}": value for name, value in told.items()})

    def describe_round(self) -> str:
        """See :meth:`LearningLoop.describe_round`: a line of a table of generations, at times with its head."""
        if not self.told:
            return ""
        groups = {
            name: shown
            for name, columns in COLUMNS.items()
            if (shown := [column for column in columns if column[1] in self.shown])
        }
        above = [
            f" {name} ".center(_wide(shown), "-") if name else " " * _wide(shown) for name, shown in groups.items()
        ]
        titles = [" ".join(f"{title:>{width}}" for title, _, width, _ in shown) for shown in groups.values()]
        cells = [" ".join(map(self._cell, shown)) for shown in groups.values()]
        self._lines += 1
        rows = (above, titles, cells) if self._lines % HEAD == 1 else (cells,)
        return "\n".join("  ".join(row).rstrip() for row in rows)

    def _cell(self, column: tuple[str, str, int, str]) -> str:
        _, name, width, form = column
        told = name in self.told and (name != "beta" or self.told["guided"])  # which else pulls at nothing
        return f"{form.format(self.told[name]) if told else '-':>{width}}"

    def _population(self) -> dict[str, Any]:
        return {
            "members": self.members.clone(),
            "origins": self.origins.clone(),
            "generation": self.generation,
            "played": self.played,
            "is_bred": self.is_bred,
        }

    def _load_population(self, state: Mapping[str, Any]) -> None:
        shape, last = tuple(self.members.shape), len(ORIGINS) - 1
        fields = {"members": array(shape, "float32"), "origins": array(shape[:1], "int64", low=0, high=last)}
        group(fields | {"generation": whole(), "played": whole(), "is_bred": flag})(state, "the population")
        self.members.copy_(state["members"])
        self.origins = state["origins"].clone()
        self.generation, self.played, self.is_bred = state["generation"], state["played"], state["is_bred"]


def _wide(columns: Sequence[tuple[str, str, int, str]]) -> int:
    return sum(width for _, _, width, _ in columns) + len(columns) - 1


class GenerationCollector:
    """Lets a population play: a round of data is a generation, whose episodes are played N at a time.

    :param host: the agent
    :param episodes: of a generation
    """

    def __init__(self, host: "PopulationAgent[Any]", episodes: int) -> None:
        self.host, self.episodes = host, episodes
        self.fitness = torch.zeros(episodes, dtype=torch.float64, device=host.device)
        """Return of each episode, as the environment gave rewards; those of the last generation until the next ends."""
        self.first = 0
        """Number of the episode in the first row."""
        self.rows = 0
        """Steps of the generation so far."""
        self.horizon = 0
        self.is_random = self.is_playing = False
        self._blank: list[dict[str, Any]] = [{} for _ in range(host.n_envs)]

    @property
    def in_progress(self) -> bool:
        """See :class:`~headway.agents.core.data.Collector`."""
        return self.rows > 0

    def collect(self, callback: BaseCallback) -> bool:
        """See :class:`~headway.agents.core.data.Collector`."""
        host = self.host
        if not self.in_progress:
            callback.on_rollout_start()
            self.first, self.is_playing = 0, False
            self.is_random, self.horizon = host.plays_at_random(), host.next_horizon()
            if not self.is_random:
                host.begin_generation()
            if not host.fetch(self.horizon):
                return False
        while self.first < self.episodes:
            if host.stop_requested:
                return False
            host.keep_environment()
            if not self.is_playing:
                host.begin_round(self.first, self.horizon)
                self.is_playing = True
            step = take_step(host, host.choose(), self._blank)
            self.rows += step.rows
            if not host.episodes_env.running.any():
                self._end_episodes()
            callback.update_locals({"dones": step.dones, "infos": step.infos, "rewards": step.host_rewards})
            if not callback.on_step():
                return False
        collected, self.rows = self.rows, 0
        host.end_round(collected)
        callback.on_rollout_end()
        return True

    def _end_episodes(self) -> None:
        env = self.host.episodes_env
        following = min(self.first + env.num_envs, self.episodes)
        self.fitness[self.first : following] = env.returns[: following - self.first].to(self.fitness.device)
        self.first, self.is_playing = following, False
        if following == self.episodes:
            env.playback = None

    def state(self) -> dict[str, Any]:
        """See :class:`~headway.agents.core.data.Collector`."""
        numbers = {name: getattr(self, name) for name in ("first", "rows", "horizon", "is_random", "is_playing")}
        return {"fitness": self.fitness.clone(), **numbers}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`~headway.agents.core.data.Collector`."""
        fields = {"first": whole(0, self.episodes), "rows": whole(), "horizon": whole()}
        fields |= {"is_random": flag, "is_playing": flag, "fitness": array((self.episodes,), "float64")}
        group(fields)(state, "the collector")
        for name in fields.keys() - {"fitness"}:
            setattr(self, name, state[name])
        self.fitness.copy_(state["fitness"])
