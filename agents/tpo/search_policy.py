"""A trained agent that looks ahead before it acts, as a policy for evaluation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from ...envs.splitmix import branches, stream_of
from ...wrappers.batching import AnyEnv
from ..core.environment import read_alike
from ..core.spaces import Obs
from .guides import guide_of
from .lines import LinePlanner, MPPIConfig, MPPIPlanner, ShootingConfig, ShootingPlanner, SMCConfig, SMCPlanner
from .planners import Planner, Roots, TreePlanner
from .simulator import check_exact, searched
from .tree import TreeConfig

PlannerName = Literal["tree", "shooting", "mppi", "smc"]

CONFIGS: Mapping[str, type[Any]] = MappingProxyType(
    {"tree": TreeConfig, "shooting": ShootingConfig, "mppi": MPPIConfig, "smc": SMCConfig}
)
"""The settings of each planner."""

_LINES: Mapping[str, type[LinePlanner]] = MappingProxyType(
    {"shooting": ShootingPlanner, "mppi": MPPIPlanner, "smc": SMCPlanner}
)

_SHORT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"tree": ("simulations", "candidates"), **dict.fromkeys(_LINES, ("simulations", "horizon"))}
)
"""Settings that are given by their place alone."""


@dataclass(frozen=True)
class Search:
    """A planner and its settings, as a command line says it.

    :param planner: its name
    :param settings: by name, checked
    :param reuse: of a tree, see :class:`SearchPolicy`
    """

    planner: PlannerName
    settings: Mapping[str, Any]
    reuse: bool = False

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a search: ``tree:32,8`` (simulations, candidates), ``mppi:32,4`` (simulations, horizon).

        Other settings follow by name, as in ``tree:32,8,exploration=0.5,reuse``.

        :param text: what was written
        :return: it
        :raises ValueError: an unknown planner, or a setting out of its range
        :raises TypeError: an unknown setting; the nearest are named
        """
        name, _, rest = text.partition(":")
        if name not in CONFIGS:
            raise ValueError(f"search {text!r}: {name!r} is no planner, it can be {', '.join(CONFIGS)}")
        words = [word for word in rest.split(",") if word]
        if reuse := name == "tree" and "reuse" in words:
            words.remove("reuse")
        settings: dict[str, Any] = {}
        for place, word in enumerate(words):
            key, equals, value = word.partition("=")
            if not equals:
                if place >= len(_SHORT[name]):
                    raise ValueError(
                        f"search {text!r}: {word!r} needs a name, as in exploration=0.5; only "
                        f"{' and '.join(_SHORT[name])} go without"
                    )
                key, value = _SHORT[name][place], word
            if key in settings:
                raise ValueError(f"search {text!r}: {key} is given twice")
            settings[key] = _plain(value)
        CONFIGS[name].from_dict(settings)
        return cls(name, settings, reuse)  # type: ignore[arg-type]

    def around(self, model: BaseAlgorithm, env: AnyEnv, **options: Any) -> "SearchPolicy":
        """:return: a model that searches so; see :class:`SearchPolicy`"""
        return SearchPolicy(model, env, self.planner, reuse=self.reuse, **options, **self.settings)


def _plain(text: str) -> Any:
    """:return: a number, true, false or null as JSON has them, or else the text"""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class SearchPolicy:
    """What ``predict`` of an agent does, after a look ahead in copies of the very environment that it acts in.

    ::

        model = headway.agents.load("runs/…/best.zip")          # or PPO.load(…) of Stable-Baselines3
        env = make_batched("headway/HalfCheetah-v5", 8)
        evaluate_policy(SearchPolicy(model, env), BatchedVecEnv(env))

    It reads the state of the environment's rows at each decision: step no other environment than this one by what it
    says. The environment itself is left as it is, bit for bit. What is found depends on the state, the number of
    decisions before it and the seed, and on nothing else, such as which rows are decided on together (but for the last
    bits of networks, which some numbers of rows round in other ways).

    :param model: a trained agent with a policy and a value, Headway's or Stable-Baselines3's; see
        :func:`~headway.agents.tpo.guides.guide_of`
    :param env: the environment it acts in: of any kind whose rows can be copied, ``VecNormalize`` around it or not
    :param planner: how it looks ahead
    :param reuse: of a tree: keep what hangs below what was done
    :param seed: of all that is drawn
    :param check: step copies of the environment first, to see that they are exact
    :param settings: of the planner: ``simulations``, ``candidates``, … of :class:`TreeConfig`, ``simulations``,
        ``horizon``, … of the others
    :raises TypeError: a model without policy or value, an environment whose rows cannot be copied, or an unknown
        setting; the nearest are named
    :raises ValueError: a setting out of its range, spaces that differ, an environment whose copies are not exact, or a
        planner that cannot choose in its action space
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        env: AnyEnv,
        planner: PlannerName = "tree",
        *,
        reuse: bool = False,
        seed: int = 0,
        check: bool = True,
        **settings: Any,
    ) -> None:
        if planner not in CONFIGS:
            raise ValueError(f"planner is {planner!r}: it can be {', '.join(get_args(PlannerName))}")
        cfg = CONFIGS[planner].from_dict(settings)
        self.batch, self.seed = searched(env), seed
        for kind in ("observation_space", "action_space"):
            here, there = getattr(self.batch, f"single_{kind}"), getattr(model, kind)
            if not read_alike(here, there):
                raise ValueError(f"the environment's {kind.replace('_', ' ')} is {here}, the policy's {there}")
        if check:
            check_exact(self.batch)
        self.guide = guide_of(model)
        self.observation_space, self.action_space = model.observation_space, model.action_space
        roots = self.batch.num_envs
        self.planner: Planner = (
            TreePlanner(self.guide, self.batch, roots, cfg, reuse=reuse)
            if planner == "tree"
            else _LINES[planner](self.guide, self.batch, roots, cfg)
        )
        self.simulated = 0
        """Steps of the simulator so far."""
        self._times = torch.zeros(roots, dtype=torch.int64)
        self._rows = torch.arange(roots, device=self.batch.device)

    def roots(self, obs: Obs) -> Roots:
        """:return: where the environment's rows are, at the next decision of each.

        :param obs: what they show, (N, *O), as ``predict`` is given it
        """
        seen = self.guide.read(obs)
        parts = list(seen.values()) if isinstance(seen, dict) else [seen]
        words = stream_of(self.seed, torch.cat([part.flatten(1).double() for part in parts], 1))
        words = branches(words, self._times.to(words.device))
        return Roots(self.batch.state(self._rows), seen, words)  # type: ignore[call-arg]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Choose actions for all rows of the environment.

        :param observation: what they show, (N, *O), or of a single row without that axis
        :param state: unused
        :param episode_start: rows that begin an episode, (N,)
        :param deterministic: take what looks best instead of drawing by how good it looks
        :return: the environment's actions, and None
        :raises ValueError: observations of another number of rows
        """
        several, obs = self._tensors(observation)
        if episode_start is not None:
            self._times = self._times.masked_fill(torch.as_tensor(np.asarray(episode_start, bool)), 0)
        with torch.no_grad():
            decision = self.planner.plan(self.roots(obs), deterministic)
            actions = self.guide.to_env(decision.actions).cpu().numpy()
        self._times = self._times + 1
        self.simulated += int(decision.simulated.sum())
        actions = actions.astype(self.action_space.dtype, copy=False).reshape(-1, *(self.action_space.shape or ()))
        return (actions if several else actions[0]), None

    def _tensors(self, observation: Any) -> tuple[bool, Obs]:
        named = observation if isinstance(observation, Mapping) else {"": observation}
        shapes = {"": self.observation_space.shape}
        if isinstance(observation, Mapping):
            shapes = {name: space.shape for name, space in self.observation_space.spaces.items()}  # type: ignore[attr-defined]
        several = np.ndim(next(iter(named.values()))) > len(next(iter(shapes.values())) or ())
        parts = {name: torch.as_tensor(np.asarray(part)) for name, part in named.items()}
        if not several:
            parts = {name: part.unsqueeze(0) for name, part in parts.items()}
        rows = len(next(iter(parts.values())))
        if rows != self.batch.num_envs:
            raise ValueError(
                f"{rows} observations were given, and the environment that is searched has {self.batch.num_envs} rows: "
                "decide on all of them together, and on those of no other environment"
            )
        return several, (parts if isinstance(observation, Mapping) else parts[""])
