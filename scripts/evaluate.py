"""``headway evaluate``: how good a saved policy is."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from ..agents.core.config import Range
from ..agents.tpo import Search
from .episodes import check_drawing, evaluate_agent, evaluation_env, record_video, table
from .missions import evaluate_missions
from .options import Flags, check_device
from .policies import Policy, policy_file, read_policy, world_of
from .references import find_reference, reference_of_run, selected_among
from .runs import check_outputs
from .search import evaluate_searches
from .statistics import Summary, summarise
from .worlds import World


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Flags):
    """Evaluate a saved policy: mean, standard deviation, IQM with its 95 % bootstrap interval, episode length."""

    path: tyro.conf.Positional[Path]
    """A saved policy, or a run folder (its best policy, or else its final one)."""

    others: tyro.conf.Positional[tuple[Path, ...]] = ()
    """With --search or --missions: more of them, of other seeds say, in the same environment. What comes of it is then
    told of all together."""

    agent: str | None = None
    """Class of the policy, for one that is not Headway's own: module:Class, which is imported; or sb3:PPO,
    sb3_contrib:TQC, … for a file of Stable-Baselines3's, whose loading runs whatever code it holds. Name a class only
    for a file that you trust."""

    episodes: Annotated[int, Range(1)] = 20
    """Episodes to run."""

    env: str | None = None
    """Environment, Id-v0 or module:Id-v0; by default the one the policy was trained in, if it is known here."""

    trust_env: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make the environment that the policy's file names, even if that imports a module, or has wrappers that write
    files."""

    delay: str | None = None
    """Delays of observations and of actions to evaluate behind, as for headway train; by default those of training."""

    delays: tuple[str, ...] = ()
    """Several of them, to be compared; none longer than those the policy was trained for."""

    search: tuple[str, ...] = ()
    """Look ahead before acting, in copies of the environment: tree:32,8 (simulations, candidates), shooting:32,4,
    mppi:32,4 or smc:32,4 (simulator steps, steps ahead), with further settings by name (tree:32,8,exploration=0.5);
    several are compared, with the policy alone before them. Of agents that have a policy and a value."""

    missions: tuple[str, ...] = ()
    """Tell it every task of these splits, train, text_known, text_new or task, in --episodes of each: scores, how often
    it counts as done, scores between a random player's and one's that looks ahead, and how much the words decide. In
    environments with missions, as headway/TextFrostbite-v0."""

    explain: Annotated[int, Range(0)] | None = None
    """Draw to --plot how this step of the first episode was decided by a --search tree:…: the tree with its visits and
    values, the candidates, and pictures along the best line."""

    plot: Path | None = None
    """Draw the comparison of --delays, of --search or of --missions to this file."""

    max_episode_steps: Annotated[int, Range(1, unit="environment steps")] | None = None
    """Where episodes are cut, of an environment that does not end by itself; by default where they were in training."""

    seed: Annotated[int, Range(0)] = 10_000
    """Seed of the episodes; episode i starts from seed + i, however many are stepped together."""

    stochastic: bool = False
    """Sample actions instead of taking the policy's mode."""

    n_envs: Annotated[int, Range(1)] = 8
    """Environments stepped together."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:0, …"""

    video: Path | None = None
    """Record the first episode to this file (.mp4 or .gif)."""

    csv: Path | None = None
    """Write one line per episode to this file."""

    reference: str | None = None
    """Whose returns count as 0 and as 100 in the normalised score: v5 or d4rl (tables of MuJoCo's robots), or a data
    set with references of its own; by default those of the data that the policy learnt from."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that exist."""

    def check(self) -> None:
        """Refuse what cannot be done before anything is.

        :raises ValueError: a device that is not there, a video format that is not known
        :raises FileExistsError: a file would be overwritten
        :raises OSError: a file cannot be written
        """
        check_device(self.device)
        check_outputs(self.video, self.csv, plot=self.plot, overwrite=self.overwrite)
        if self.delays and self.video is not None:
            raise ValueError("--video shows one law of delays: choose it with --delay instead of --delays")
        if self.delays and self.reference is not None:
            raise ValueError("--reference goes with one law of delays: choose it with --delay instead of --delays")
        if self.plot is not None and not (self.delays or self.search or self.missions):
            raise ValueError("--plot draws the comparison of --delays, --search or --missions, and there are none")
        for name in ("search", "missions"):
            if getattr(self, name) and (self.delays or self.video is not None or self.reference is not None):
                raise ValueError(
                    f"--{name} goes without --delays, --video and --reference; --delay names one law of delays"
                )
        if self.search and self.missions:
            raise ValueError("--search and --missions are two evaluations: leave one out")
        self._check_search()
        if self.video is not None and self.video.suffix not in (".mp4", ".gif"):
            raise ValueError(f"--video must end in .mp4 or .gif, got {self.video.name}")

    def _check_search(self) -> None:
        for search in self.search:
            Search.of(search)
        if self.others and (not (self.search or self.missions) or self.explain is not None):
            raise ValueError("several policies are compared with --search tree:… or --missions, without --explain")
        if self.explain is not None and (len(self.search) != 1 or self.plot is None):
            raise ValueError("--explain goes with one --search tree:… and with --plot FILE, which it draws to")


def evaluate(options: EvaluateOptions) -> Summary | None:
    """Run ``headway evaluate``.

    :param options: its arguments
    :return: what was printed of the returns, if there were any
    """
    options.check()
    policy = read_policy(policy_file(options.path), options.agent, options.device)
    agent, path = policy.agent, policy.path
    world = _world(options, policy)
    if options.video is not None:
        check_drawing(world.env_id)
    deterministic = not options.stochastic
    said = f"{path}: {policy.name} after {agent.num_timesteps:,} steps, in {world}"
    if options.delays:
        return _evaluate_delays(options, policy, world, said)
    if options.search or options.missions:
        print(said)
        return (_evaluate_searches if options.search else _evaluate_missions)(options, policy, world)
    reference = reference_of_run(path.parent)
    if options.reference is not None:
        reference = find_reference(options.reference, world.env_id)
    env = policy.in_(evaluation_env(world, min(options.n_envs, options.episodes)))
    print(said)
    if (count := selected_among(path)) > 1:
        print(f"chosen as the best of {count} evaluations here, which flatters it; final.zip is not chosen")
    with table(options.csv, ["episode", "return", "length"]) as write:
        returns, lengths = evaluate_agent(agent, env, options.episodes, options.seed, deterministic, write)
    env.close()
    summary = summarise(returns, lengths)
    print(summary)
    if reference is not None:
        print(reference.line(summary.mean, summary.iqm))
    if options.csv is not None:
        print(f"episodes written to {options.csv}")
    if options.video is not None:
        filmed = policy.in_(evaluation_env(world, 1, render=True))
        frames = record_video(agent, filmed, options.video, options.seed, deterministic)
        filmed.close()
        print(f"{frames} frames written to {options.video}")
    return summary


def _world(options: EvaluateOptions, policy: Policy) -> World:
    """:return: what the policy acts in, as it is asked for"""
    world = world_of(policy, options.env, options.trust_env)
    if options.delay is not None:
        world = replace(world, delay=options.delay) if world.delay is None else world.under(options.delay)
    if options.max_episode_steps is not None:
        world = replace(world, max_episode_steps=options.max_episode_steps)
    return world


def _evaluate_delays(options: EvaluateOptions, policy: Policy, world: World, said: str) -> Summary:
    """Evaluate one policy under several laws of delays; :return: the summary under the last."""
    worlds = [world.under(delay) for delay in options.delays]  # all of them first: a mistake in the last is told now
    print(said)
    width = max(map(len, options.delays))
    summaries = []
    with table(options.csv, ["delays", *(field.name for field in fields(Summary))]) as write:
        for delay, changed in zip(options.delays, worlds, strict=True):
            env = policy.in_(evaluation_env(changed, min(options.n_envs, options.episodes)))
            returns, lengths = evaluate_agent(policy.agent, env, options.episodes, options.seed, not options.stochastic)
            env.close()
            summaries.append(summarise(returns, lengths))
            write(delay, *astuple(summaries[-1]))
            print(f"{delay:<{width}}  {summaries[-1]}", flush=True)
    if options.csv is not None:
        print(f"returns written to {options.csv}")
    if options.plot is not None:
        title = f"{policy.name} trained behind {world.delay}, in {world.env_id}"
        _plot(options.plot, title, "delays: observation, action", options.delays, summaries)
    return summaries[-1]


def _evaluate_searches(options: EvaluateOptions, policy: Policy, world: World) -> Summary | None:
    """Evaluate policies with several ways of looking ahead; :return: the summary with the last."""
    if options.explain is not None:
        assert options.plot is not None
        from .explain import explain  # whose figures take a second to import

        explain(policy, world, options.search[0], options.explain, options.plot, options.seed)
        return None
    found = evaluate_searches(
        _policies(options, policy, world),
        world,
        options.search,
        episodes=options.episodes,
        n_envs=options.n_envs,
        seed=options.seed,
        deterministic=not options.stochastic,
        csv=options.csv,
    )
    if options.csv is not None:
        print(f"returns written to {options.csv}")
    if options.plot is not None:
        title = f"{policy.name} looking ahead, in {world.env_id}"
        _plot(options.plot, title, "search", [one.search for one in found], [one.summary for one in found])
    return found[-1].summary


def _evaluate_missions(options: EvaluateOptions, policy: Policy, world: World) -> None:
    """Evaluate policies that are told every task of some splits."""
    found = evaluate_missions(
        _policies(options, policy, world),
        world,
        options.missions,
        episodes=options.episodes,
        n_envs=options.n_envs,
        seed=options.seed,
        deterministic=not options.stochastic,
        csv=options.csv,
    )
    if options.csv is not None:
        print(f"scores written to {options.csv}")
    if options.plot is not None:
        from .draw_missions import draw_missions  # takes a second to import

        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw_missions(found, f"{policy.name} after {policy.agent.num_timesteps:,} steps, in {world}", options.plot)
        print(f"plot: {options.plot}")


def _policies(options: EvaluateOptions, policy: Policy, world: World) -> list[Policy]:
    """:return: all that are evaluated together"""
    others = [read_policy(policy_file(path), options.agent, options.device) for path in options.others]
    for other in others:
        if (found_in := _world(options, other)) != world:
            raise ValueError(f"{other.path} is of {found_in}, {policy.path} of {world}: pass --env")
    return [policy, *others]


def _plot(path: Path, title: str, what: str, names: Sequence[str], summaries: Sequence[Summary]) -> None:
    from .figures import returns_by_name  # takes a second to import

    path.parent.mkdir(parents=True, exist_ok=True)
    returns_by_name(path, title, what, names, summaries)
    print(f"plot: {path}")
