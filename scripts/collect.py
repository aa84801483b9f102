"""``headway collect``: data sets from policies, recorded at the speed of rollouts."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ..agents import PPO, SAC, ActorCriticAgent
from ..agents.core.config import Range
from ..agents.core.data import Dataset, ReplayStore, Turn, join, run_episodes, write_dataset
from ..agents.core.data.dataset_files import check_new_dataset, size_of
from ..agents.core.data.episode_files import needs
from ..agents.core.data.recording import record, stored_episodes
from ..agents.core.files import list_checkpoints
from ..agents.core.files.contents import versions
from ..agents.core.nets.policies import DensityActor
from ..agents.core.seeds import spawn_seed
from ..agents.core.spaces import actions_of, count_rows, shown
from ..envs.batched import Obs
from ..wrappers import as_batched
from ..wrappers.sb3 import to_numpy
from ..wrappers.specs import spec_to_json
from .episodes import evaluation_env
from .options import Flags, check_device, run_flags
from .policies import Policy, policy_file, read_policy, world_of
from .runs import progress_bar
from .worlds import World

Act = Callable[[Obs, Turn], Mapping[str, Tensor]]

REFERENCE_EPISODES = 100
"""Episodes that a reference score is the mean of, as Minari's are."""


@dataclass(frozen=True, kw_only=True)
class CollectOptions(Flags):
    """Record a data set from one or several policies, or take it from what an agent has stored."""

    dataset: str
    """Id of the new data set, namespace/name-v0. None is overwritten."""

    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run folder (its best policy, or else its final one), a policy's file, random (uniform actions), or
    module:function, which is imported and called with observations (N, …) as arrays and gives actions (N, …). Given
    several times, each records its share."""

    shares: tuple[float, ...] = ()
    """Shares of the steps, one for each --policy; by default equal ones."""

    replay: Path | None = None
    """Instead of --policy: take the whole episodes in the store of a run's newest checkpoint."""

    env: str | None = None
    """Environment, Id-v0 or module:Id-v0; by default the one the first policy was trained in, if it is known here."""

    steps: Annotated[int, Range(1, unit="environment steps")] = 100_000
    """Steps to record; the last episode of each policy is finished."""

    agent: str | None = None
    """Class of the policy, if it is the only one and not Headway's own: module:Class, or sb3:PPO, …, whose loading runs
    whatever code the file holds."""

    trust_env: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make the environment that the policy's file names, even if that imports a module."""

    max_episode_steps: Annotated[int, Range(1, unit="environment steps")] | None = None
    """Where episodes are cut, of an environment that does not end by itself."""

    deterministic: bool = False
    """Take the policies' modes instead of samples; there is no behavior_logp then."""

    ref_min: str | None = None
    """Score that counts as 0: a number, or a policy, often random, whose mean return over 100 episodes is measured."""

    ref_max: str | None = None
    """Score that counts as 1: a number, or a policy, acting by its mode, whose mean return is measured."""

    description: str = ""
    """What the data set is, in words."""

    data_format: Literal["hdf5", "arrow", "parquet"] = "hdf5"
    """How it is written."""

    seed: Annotated[int, Range(0)] = 0
    """Seed of environments and actions: equal ones give equal data sets, with equal --n-envs."""

    n_envs: Annotated[int, Range(1)] = 16
    """Environments stepped together."""

    device: str = "auto"
    """Where policies compute: auto, cpu, cuda, cuda:0, …"""

    progress: bool = True
    """Show a progress bar."""

    def check(self) -> None:
        """Refuse what cannot be done before anything is.

        :raises ValueError: flags that do not go together, or an id that is none
        :raises FileExistsError: there is a data set of this id
        :raises OSError: it cannot be written
        """
        check_device(self.device)
        for module in ("minari", "h5py" if self.data_format == "hdf5" else "pyarrow"):
            needs(module)
        check_new_dataset(self.dataset)
        if bool(self.policy) == (self.replay is not None):
            raise ValueError("who acts? pass --policy random, a run or a policy's file; or --replay RUN, and not both")
        if self.agent is not None and len(self.policy) != 1:
            raise ValueError(f"--agent says the class of one --policy, and there are {len(self.policy)}")
        if self.shares and len(self.shares) != len(self.policy):
            raise ValueError(f"--shares has {len(self.shares)} numbers for {len(self.policy)} times --policy")
        if not all(math.isfinite(share) and share > 0 for share in self.shares):
            raise ValueError(f"--shares must be positive numbers, got {' '.join(map(str, self.shares))}")


# -- who acts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Actor:
    """Somebody who acts.

    :param name: as provenance says it
    :param policy: of a file; None: somebody who needs none
    :param function: of a script
    """

    name: str
    policy: Policy | None = None
    function: Callable[[Any], Any] | None = None

    def act_in(self, env: VecEnv, deterministic: bool, seed: int) -> Act:
        """:return: how it acts in environments, with random numbers that follow from a seed."""
        space, batch = env.action_space, as_batched(env)
        if self.function is not None:
            return _scripted(self.name, self.function, batch.num_envs, space)
        if self.policy is None:
            return _random(space, batch.device, seed)
        agent = self.policy.agent
        if not deterministic and (sample := sampler_of(agent)) is not None:
            assert isinstance(agent, ActorCriticAgent)
            return _with_density(agent, sample, seed)
        set_random_seed(seed)  # of Stable-Baselines3's policies
        agent.set_random_seed(seed)

        memory = None

        def act(obs: Obs, turn: Turn) -> Mapping[str, Tensor]:
            nonlocal memory
            actions, memory = agent.predict(to_numpy(obs), memory, turn.starts.cpu().numpy(), deterministic)
            return {"actions": torch.as_tensor(actions, device=batch.device)}

        return act


Sampler = Callable[[Obs, torch.Generator], tuple[Tensor, Tensor]]
"""Draws an agent's actions for encoded observations (N, *O), and says with what log density (N,)."""


def sampler_of(agent: BaseAlgorithm) -> Sampler | None:
    """:return: what samples an agent's actions as it does, and knows how likely they were; None: nothing does"""
    if isinstance(agent, PPO):
        nets = agent.nets.module
        return lambda obs, generator: nets.policy.sample(nets(obs)[0], nets.policy.noise(count_rows(obs), generator))
    actor = getattr(getattr(agent, "actor", None), "module", None)
    if isinstance(actor, DensityActor):
        return lambda obs, generator: actor.sample(obs, actor.policy.noise(count_rows(obs), generator))
    if isinstance(agent, SAC):
        return lambda obs, generator: actor.sample(obs, actor.noise(count_rows(obs), generator))  # type: ignore[union-attr]
    return None


def _with_density(agent: ActorCriticAgent[Any], sample: Sampler, seed: int) -> Act:
    """Sample, and say how likely that was.

    Densities are of what was drawn, before it was clipped, in the unit of the action space: where an agent's actions
    are in [-1, 1], stretching them to the bounds divides the density by half the distance of these.
    """
    generator, stretch, space = torch.Generator(agent.device).manual_seed(seed), 0.0, agent.action_space
    if isinstance(space, spaces.Box) and agent.squashes:
        stretch = float(np.log((space.high.astype(np.float64) - space.low) / 2).sum())

    def act(obs: Obs, turn: Turn) -> Mapping[str, Tensor]:
        drawn, density = sample(agent.codec.encode(obs, agent.device), generator)
        rows = turn.running.device
        return {"actions": agent.actions.to_env(drawn).to(rows), "behavior_logp": (density - stretch).to(rows)}

    return act


def _random(space: spaces.Space[Any], device: torch.device, seed: int) -> Act:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
        raise ValueError(f"random acts in Box, Discrete and MultiDiscrete action spaces, got {shown(space)}")
    actions, generator = actions_of(space, device, squashes=False), torch.Generator(device).manual_seed(seed)

    def act(obs: Obs, turn: Turn) -> Mapping[str, Tensor]:
        drawn = actions.random(len(turn.running), generator)
        chosen = {"actions": actions.to_env(drawn)}
        if isinstance(space, spaces.Box) and space.dtype.kind in "iu":
            return chosen  # rounded: of the ends there are half as many
        return {**chosen, "behavior_logp": _random_density(space, drawn)}

    return act


def _random_density(space: spaces.Space[Any], drawn: Tensor) -> Tensor:
    """:return: log density of random actions (N, *field.shape): uniform, of unbounded numbers standard normal, (N,)"""
    if isinstance(space, spaces.Box):
        low, high = (torch.as_tensor(bound.ravel(), device=drawn.device).double() for bound in (space.low, space.high))
        normal = -0.5 * (drawn.double().square() + math.log(2 * math.pi))
        return torch.where((high - low).isfinite(), -(high - low).log(), normal).sum(1).float()
    choices = int(space.n) if isinstance(space, spaces.Discrete) else np.prod(space.nvec.astype(np.float64))  # type: ignore[attr-defined]
    return torch.full((len(drawn),), -math.log(choices), device=drawn.device)


def _scripted(name: str, function: Callable[[Any], Any], rows: int, space: spaces.Space[Any]) -> Act:
    shape = (rows, *(space.shape or ()))

    def act(obs: Obs, turn: Turn) -> Mapping[str, Tensor]:
        try:
            actions = np.asarray(function(to_numpy(obs)))
        except Exception as cause:  # of the script's own: anything can happen in it
            said = " ".join(f"{type(cause).__name__}: {cause}".split())
            raise ValueError(f"{name} failed at observations of {rows} rows: {said}") from cause
        if actions.shape != shape:
            raise ValueError(f"{name} returned actions of shape {actions.shape}, {rows} rows need {shape}")
        if actions.dtype.kind not in "fiub" or not np.isfinite(actions).all():
            raise ValueError(f"{name} returned actions that are no finite numbers, {actions.dtype}")
        actions = np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
        return {"actions": torch.as_tensor(actions.astype(space.dtype), device=turn.running.device)}

    return act


def read_actor(text: str, agent: str | None, device: str) -> Actor:
    """Find out who is meant.

    :param text: ``random``, ``module:function``, a run folder or a policy's file
    :param agent: class of the policy, for somebody who trusts it
    :param device: where it computes
    :return: who acts
    :raises FileNotFoundError: there is no such file
    :raises ValueError: it cannot be read, or imported
    """
    if text == "random":
        return Actor(text)
    module, colon, name = text.rpartition(":")
    if not colon or Path(text).exists():
        policy = read_policy(policy_file(Path(text)), agent, device)
        return Actor(f"{policy.name} after {policy.agent.num_timesteps:,} steps, {policy.path}", policy)
    try:
        function = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as cause:  # the module's own code: anything can happen in it
        said = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise ValueError(f"--policy {text}: {module} cannot be imported: {said}; PYTHONPATH=. may help") from cause
    if not callable(function):
        raise ValueError(f"--policy {text}: module {module!r} has no function {name!r}")
    return Actor(text, function=function)


# -- what is recorded ------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """A data set in the making.

    :param options: of the command
    :param world: the environment
    :param about: what the data set will say of itself
    """

    options: CollectOptions
    world: World
    about: dict[str, Any] = field(default_factory=dict)

    def _env(self, actor: Actor) -> tuple[VecEnv, spaces.Space[Any]]:
        """:return: environments as the actor sees them, and what they show without its normalisation"""
        env = evaluation_env(self.world, self.options.n_envs)
        return (env if actor.policy is None else actor.policy.in_(env)), env.observation_space

    def record(self, actors: Sequence[Actor]) -> Dataset:
        """:return: what they do, one after the other."""
        options, parts = self.options, []
        shares = np.array(options.shares or [1.0] * len(actors)) / (sum(options.shares) or len(actors))
        goals = np.diff(np.round(np.cumsum(shares) * options.steps), prepend=0).astype(int)
        for actor, steps in zip(actors, goals.tolist(), strict=True):
            if steps < 1:
                raise ValueError(f"--shares leave no step for {actor.name}: raise --steps or its share")
        with progress_bar(options.steps, 0) if options.progress else nullcontext() as bar:
            for number, (actor, steps) in enumerate(zip(actors, goals.tolist(), strict=True)):
                parts.append(self._part(number, actor, steps, bar))
        self.about["policies"] = [
            {"id": number, "policy": actor.name, "steps": len(part), "return": round(float(part.returns.mean()), 4)}
            for number, (actor, part) in enumerate(zip(actors, parts, strict=True))
        ]
        return join(parts)

    def _part(self, number: int, actor: Actor, steps: int, bar: Any) -> Dataset:
        """:return: what one of them does"""
        options, left = self.options, steps
        env, shown_space = self._env(actor)
        act = actor.act_in(env, options.deterministic, spawn_seed(options.seed, "environments", number, 1))

        def done(part: Dataset) -> None:
            nonlocal left
            if left == steps:  # the first round tells how much there will be
                size = size_of(part, options.data_format) / len(part) * options.steps
                check_new_dataset(options.dataset, int(size))
            new = min(left, len(part))
            left -= new
            if bar is not None:
                bar.set_description_str(f"return {float(part.returns.mean()):.4g} · ", refresh=False)
                bar.update(new)

        seed = spawn_seed(options.seed, "environments", number)
        data = record(as_batched(env), act, steps=steps, seed=seed, observation_space=shown_space, done=done)
        env.close()
        return replace(data, extras={**data.extras, "policy_id": torch.full((len(data),), number)})

    def score(self, text: str | None, side: str, deterministic: bool) -> float | None:
        """:return: a reference: the number, or what the policy returns on average"""
        if text is None:
            return None
        try:
            return float(text)
        except ValueError:
            pass
        actor = read_actor(text, None, self.options.device)
        env, _ = self._env(actor)
        act = actor.act_in(env, deterministic, spawn_seed(self.options.seed, "evaluation", 1))
        seed = spawn_seed(self.options.seed, "evaluation")
        returns = run_episodes(as_batched(env), act, episodes=REFERENCE_EPISODES, seed=seed).returns
        env.close()
        mean, error = float(returns.mean()), float(returns.std() / math.sqrt(len(returns)))
        said = {"policy": actor.name, "mean": mean, "standard error": error, "episodes": len(returns)}
        self.about.setdefault("references", {})[side] = said
        print(f"reference {side}: {mean:.4g} ± {error:.2g}, {actor.name}, {len(returns)} episodes")
        return mean


def _replayed(path: Path, agent: Any) -> Dataset:
    """:return: the whole episodes of the store in a checkpoint"""
    if not isinstance(getattr(agent, "store", None), ReplayStore):
        raise ValueError(f"{path} is of {type(agent).__name__}, which keeps no replay store")
    agent.load_replay_buffer(path)
    spaces_ = agent.observation_space, agent.action_space
    data = stored_episodes(agent.store, agent.codec, agent.actions, *spaces_)
    dropped = len(agent.store) - len(data)
    print(f"{path}: {len(agent.store):,} steps stored, {dropped:,} of them in episodes that are not whole")
    return data


def newest_checkpoint(run: Path) -> Path:
    """:return: a run's newest checkpoint; a checkpoint itself is one

    :raises FileNotFoundError: there is none
    """
    found = [run] if run.is_file() else [*list_checkpoints(run / "checkpoints"), *list_checkpoints(run)]
    if not found:
        raise FileNotFoundError(f"{run} has no checkpoint: train with --checkpoint-every, or name a run's folder")
    return found[0]


def collect(options: CollectOptions) -> None:
    """Run ``headway collect``.

    :param options: its arguments
    """
    options.check()
    actors = [read_actor(text, options.agent, options.device) for text in options.policy]
    policies = [actor.policy for actor in actors if actor.policy is not None]
    if options.replay is not None:
        path = newest_checkpoint(options.replay)
        policies = [read_policy(path, None, options.device)]
    if policies:
        world = world_of(policies[0], options.env, options.trust_env)
    elif options.env is not None:
        world = World.of(options.env)
    else:
        raise ValueError("which environment? pass --env Id-v0")
    if options.max_episode_steps is not None:
        world = replace(world, max_episode_steps=options.max_episode_steps)
    recording = Recording(options, world)
    low = recording.score(options.ref_min, "min", deterministic=False)
    high = recording.score(options.ref_max, "max", deterministic=True)
    if options.replay is not None:
        data = _replayed(path, policies[0].agent)
        recording.about["replay"] = str(path)
    else:
        data = recording.record(actors)
    data = replace(
        data, name=options.dataset, env_id=world.env_id, ref_min_score=low, ref_max_score=high, about=_about(recording)
    )
    place = write_dataset(data, data_format=options.data_format)
    returns = data.returns
    print(
        f"{data.name}: {data.episodes:,} episodes, {len(data):,} steps, return {float(returns.mean()):.4g} "
        f"[{float(returns.min()):.4g}, {float(returns.max()):.4g}], {' and '.join(sorted(data.extras)) or 'no extras'}"
    )
    print(f"written to {place}")


def _about(recording: Recording) -> dict[str, Any]:
    """:return: metadata, by Minari's names where it has them"""
    options, world = recording.options, recording.world
    env = world.single()
    spec = spec_to_json(env.spec)
    env.close()
    how = {"seed": options.seed, "n_envs": options.n_envs, "deterministic": options.deterministic}
    about = {
        "env_spec": spec,
        "description": options.description or None,
        "num_episodes_average_score": REFERENCE_EPISODES if "references" in recording.about else None,
        "collected": {"world": str(world), **how, **recording.about, "versions": versions()},
    }
    return {key: value for key, value in about.items() if value is not None}


def main(arguments: Sequence[str]) -> int:
    """Run ``headway collect``.

    :param arguments: the command line after "collect"
    :return: exit code
    """
    return run_flags(CollectOptions, arguments, "headway collect", collect)
