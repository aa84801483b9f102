"""From an agent's configuration class to a command line: a flag per field, defaults from presets and files."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from ..agents import AGENTS, ActorCriticAgent
from ..agents.core.config import AgentConfig, Range, describe, nearest
from ..agents.presets import preset, preset_names


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a training run needs besides the agent's hyper-parameters."""

    env: str = ""
    """Environment: Id-v0, or module:Id-v0 to import the module that registers it. Required unless --resume is given."""

    total_timesteps: Annotated[int, Range(1, unit="environment steps")] = 100_000
    """Length of the run, over all environments together."""

    seed: Annotated[int, Range(0)] = 0
    """Seed of every random stream; equal seeds give equal runs."""

    n_envs: Annotated[int, Range(1)] = 1
    """Environments stepped together."""

    vec: str = "dummy"
    """How several environments are stepped: dummy (in turn, in this process) or subproc (a process each)."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:0, …"""

    threads: Annotated[int, Range(0)] = 0
    """Threads of torch on the CPU; 0 leaves torch's own choice, the number of cores."""

    preset: str = "auto"
    """Preset whose values stand in for the defaults; auto takes the environment's own if there is one, else default."""

    config: Path | None = None
    """YAML file of flag names and values; it overrides the preset, flags override it."""

    run_dir: Path | None = None
    """Folder of the run, which must not exist yet; by default runs/<env>/<agent>/<time>-s<seed>."""

    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint and with its own settings."""

    eval_every: Annotated[int, Range(0, unit="environment steps")] = 5_000
    """Distance between evaluations; the best policy is kept as best.zip. 0 evaluates only before and after."""

    eval_episodes: Annotated[int, Range(1)] = 5
    """Episodes per evaluation (before and after training: twice as many)."""

    checkpoint_every: Annotated[int, Range(0, unit="environment steps")] = 10_000
    """Distance between checkpoints; 0 writes one only when the run is interrupted."""

    keep_checkpoints: Annotated[int, Range(1)] = 2
    """Newest checkpoints that are kept."""

    log_every: Annotated[int, Range(1, unit="environment steps")] = 1_000
    """Distance between lines in progress.csv and TensorBoard."""

    video: bool = False
    """Record the final policy to final.mp4."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name, info in describe(type(self)).items():
            value = getattr(self, name)
            for interval in info.ranges:
                if value not in interval:
                    raise ValueError(f"--{name.replace('_', '-')} must lie in {interval}, got {value}")
        if self.vec not in ("dummy", "subproc"):
            raise ValueError(f"--vec must be dummy or subproc, got {self.vec!r}")


EXECUTION = ("device", "threads", "progress", "video", "total_timesteps", "keep_checkpoints")
"""Options that may change when a run is resumed; the others would make it another run."""


@dataclass(frozen=True)
class Run:
    """A resolved command.

    :param agent_class: the agent
    :param config: its hyper-parameters
    :param options: everything else
    """

    agent_class: type[ActorCriticAgent[Any]]
    config: AgentConfig
    options: TrainOptions

    def to_dict(self) -> dict[str, Any]:
        """:return: the run in JSON's terms, as ``config.json`` holds it."""
        options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self.options).items()}
        return {"agent": self.agent_class.__name__, "options": options, "config": self.config.to_dict()}


def agent_class(name: str) -> type[ActorCriticAgent[Any]]:
    """Look an agent up by its name on the command line.

    :param name: in lower case
    :return: its class
    :raises ValueError: there is none; the nearest names are given
    """
    known = {cls.lower(): agent for cls, agent in AGENTS.items()}
    if name not in known:
        raise ValueError(f"there is no agent {name!r}: {nearest(name, known)}")
    return known[name]


def parse_train(name: str, arguments: Sequence[str]) -> Run:
    """Parse ``headway train NAME …``.

    :param name: the agent, in lower case; "" when the run to resume tells
    :param arguments: the rest of the command line
    :return: the resolved run
    :raises ValueError: a value, preset or file that does not fit; the message says what would
    """
    early = _early(arguments)
    if early.resume is not None:
        return _resumed(name, Path(early.resume), arguments)
    cls = agent_class(name)
    flags = _flags_class(cls)
    defaults = _preset_values(name, early, cls) | _file_values(early.config, flags)
    run = _parse(cls, flags, arguments, defaults)
    if not run.options.env:
        raise ValueError("which environment? pass --env Id-v0 (`headway envs` lists them)")
    return run


def _early(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the few flags that decide the other flags' defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--env", "--preset", "--config", "--resume"):
        parser.add_argument(flag, default=None)
    return parser.parse_known_args([a.replace("_", "-", 2) if a.startswith("--") else a for a in arguments])[0]


def _preset_values(name: str, early: argparse.Namespace, cls: type[ActorCriticAgent[Any]]) -> dict[str, Any]:
    chosen = early.preset or "auto"
    if chosen == "auto":
        env_id = (early.env or "").rpartition(":")[2]
        chosen = env_id if env_id in preset_names(name) else "default"
    return preset(name, chosen, cls.config_class)


def _file_values(file: str | None, flags: type) -> dict[str, Any]:
    if file is None:
        return {}
    values = yaml.safe_load(Path(file).read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold names and values, one 'name: value' per line")
    known = {field.name for field in dataclasses.fields(flags)}
    for key in values:
        if key not in known:
            raise ValueError(f"{file} has an unknown key {key!r}: {nearest(str(key), known)}")
    return values


def _flags_class(cls: type[ActorCriticAgent[Any]]) -> type:
    """A dataclass with every option and every hyper-parameter, each with its documentation, range and unit as help."""
    rows = []
    for source in (TrainOptions, cls.config_class):
        for info in describe(source).values():
            annotation: Any = info.annotation
            annotation = Annotated[annotation, tyro.conf.arg(help=info.help)]
            rows.append((info.name, annotation, dataclasses.field(default=info.default)))
    return dataclasses.make_dataclass(f"{cls.__name__}Flags", rows, frozen=True, kw_only=True)


def _parse(cls: type[ActorCriticAgent[Any]], flags: type, arguments: Sequence[str], defaults: Mapping[str, Any]) -> Run:
    config = cls.config_class.from_dict({k: v for k, v in defaults.items() if k in describe(cls.config_class)})
    options = {k: v for k, v in defaults.items() if k in describe(TrainOptions)}
    parsed = tyro.cli(
        flags,
        args=list(arguments),
        default=flags(**(vars(config) | options)),
        prog=f"headway train {cls.__name__.lower()}",
        description=f"Train {cls.__name__}. {cls.__doc__.splitlines()[0] if cls.__doc__ else ''}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(flags)}
    return Run(
        cls,
        cls.config_class.from_dict({k: values[k] for k in describe(cls.config_class)}),
        TrainOptions(**{k: values[k] for k in describe(TrainOptions)}),
    )


def read_run(folder: Path) -> dict[str, Any]:
    """Read a run's ``config.json``.

    :param folder: the run's folder
    :return: its content
    :raises FileNotFoundError: not a run folder
    :raises ValueError: broken
    """
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.json")
    try:
        read: dict[str, Any] = json.loads(file.read_text())
        if not {"agent", "options", "config"} <= read.keys():
            raise ValueError("keys are missing")
    except (ValueError, AttributeError) as cause:
        raise ValueError(f"{file} is broken ({cause}): restore it, or start a new run") from cause
    return read


def _resumed(name: str, folder: Path, arguments: Sequence[str]) -> Run:
    """The run in a folder, with the few changes that leave it the same run."""
    saved = read_run(folder)
    cls = agent_class(saved["agent"].lower())
    if name and cls is not agent_class(name):
        raise ValueError(f"{folder} is a run of {saved['agent'].lower()}, not {name}")
    before = {**saved["options"], **saved["config"]}
    for key in ("config", "run_dir", "resume"):
        before[key] = None if before[key] is None else Path(before[key])
    run = _parse(cls, _flags_class(cls), arguments, before)
    after = {**dataclasses.asdict(run.options), **run.config.to_dict()}
    stored = cls.config_class.from_dict(saved["config"]).to_dict()
    for key, value in after.items():
        if key not in (*EXECUTION, "resume") and value != stored.get(key, before[key]):
            raise ValueError(
                f"--{key.replace('_', '-')} is {stored.get(key, before[key])} in {folder} and cannot become {value}: "
                "that would be another run; leave the flag out, or start one without --resume"
            )
    return run
