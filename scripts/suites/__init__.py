"""Suites: which agents to compare in which environments, in safely read YAML whose every key and flag is checked."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from ...agents.core.config import Count, FieldInfo, Range, describe, fits
from ...agents.core.plain_yaml import read_yaml
from ...envs.naming import nearest
from ..options import Run, TrainOptions, on_or_off, parse_train
from ..peers import trainable

T = TypeVar("T")

RESERVED = {"env", "seed", "total_timesteps", "eval_every", "eval_episodes", "threads"}
RESERVED |= {"progress", "run_dir", "resume", "config"}
"""Flags of ``headway train`` that the benchmark sets itself, or that would hide values in another file."""

WANTED = {"seeds": "a count or a list of int", "environments": "a list", "arms": "a list"}
"""What to say where the type alone would say little."""

_NO_FLAGS: Any = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where agents are compared."""

    id: str
    """As for headway train: Id-v0 or module:Id-v0."""

    label: str = ""
    """Its name in tables and figures; by default the id, without the module."""

    data: str = ""
    """What {data} stands for in the flag dataset of arms that learn from data: a namespace, or the start of an id."""

    total_timesteps: Count | None = None
    """Length of its runs, where it is not the suite's."""

    reference_low: float | None = None
    """Return that counts as 0 when scores are averaged over environments, say a random policy's."""

    reference_high: float | None = None
    """Return that counts as 1, say a good policy's."""

    flags: Mapping[str, Any] = _NO_FLAGS
    """Flags of headway train for every run in it."""

    @property
    def reference(self) -> tuple[float, float] | None:
        """Returns that count as 0 and as 1, if the suite says."""
        low, high = self.reference_low, self.reference_high
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is compared: an agent and its settings."""

    label: str
    """Its name in tables and figures."""

    agent: str
    """Name of the agent, as for headway train: sac, module:Class, or a rival such as sb3:PPO or sb3_contrib:TQC."""

    flags: Mapping[str, Any] = _NO_FLAGS
    """Flags of headway train: hyper-parameters, and whatever this arm wants of its environment."""

    total_timesteps: Count | None = None
    """Length of its runs in every environment, where it is not that of the others."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A comparison: every arm is trained in every environment with every seed."""

    name: str
    """Letters, digits, dots, dashes and underscores."""

    description: str = ""
    """What the comparison is to show."""

    total_timesteps: Count
    """Length of a run in environment steps."""

    seeds: tuple[Annotated[int, Range(0, 4_000_000_000)], ...]
    """Seeds; a number n in the file stands for 0 to n - 1."""

    eval_every: Annotated[int, Range(1, unit="environment steps")] = 5_000
    """Distance between evaluations."""

    eval_episodes: Count = 10
    """Episodes per evaluation (before and after training: twice as many)."""

    final_evaluations: Count = 1
    """The final score of a run is the mean over so many last evaluations."""

    environments: tuple[Environment, ...]
    """At least one."""

    arms: tuple[Arm, ...]
    """At least one."""

    baseline: str = ""
    """Label of the arm with which the others are compared; by default the first."""

    flags: Mapping[str, Any] = _NO_FLAGS
    """Flags of headway train for every run. An environment's own override these, an arm's override both."""

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Self:
        """Build a suite from what was read from YAML.

        :param values: the content of the file
        :param source: its name, for messages
        :return: the suite, all of whose commands parse
        :raises ValueError: an unknown key or flag (the nearest ones are named), a missing one, a value that does not
            fit
        """
        values = dict(_mapping(values, source))
        if isinstance(values.get("seeds"), int) and not isinstance(values["seeds"], bool):
            values["seeds"] = list(range(values["seeds"]))
        for key, part in (("environments", Environment), ("arms", Arm)):
            if isinstance(entries := values.get(key), list):
                values[key] = [
                    _build(part, _mapping(entry, f"{source}: {key}[{number}]"), f"{source}: {key}[{number}]")
                    for number, entry in enumerate(entries)
                ]
        suite = _build(cls, values, source)
        suite = replace(
            suite,
            environments=tuple(replace(e, label=e.label or e.id.rpartition(":")[2]) for e in suite.environments),
            baseline=suite.baseline or "".join(arm.label for arm in suite.arms[:1]),
        )
        suite._check(source)
        return suite

    def to_dict(self) -> dict[str, Any]:
        """:return: the suite in YAML's terms, which :meth:`from_dict` turns back."""
        content = _filled(self)
        content["seeds"] = list(self.seeds)
        content["environments"] = [_filled(environment) for environment in self.environments]
        content["arms"] = [_filled(arm) for arm in self.arms]
        return content

    def changed(self, *, seeds: tuple[int, ...] | None = None, total_timesteps: int | None = None) -> Self:
        """Change what a command line may.

        :param seeds: others, or None
        :param total_timesteps: another length of the runs, in every environment, or None
        :return: the suite, checked again
        :raises ValueError: it does not fit
        """
        content = self.to_dict()
        if seeds is not None:
            content["seeds"] = list(seeds)
        if total_timesteps is not None:
            content["total_timesteps"] = total_timesteps
            for part in (*content["environments"], *content["arms"]):
                part.pop("total_timesteps", None)
        return self.from_dict(content, self.name)

    def steps(self, environment: Environment, arm: Arm | None = None) -> int:
        """:return: length of an arm's run in an environment; of the arms that do not say, without one"""
        own = None if arm is None else arm.total_timesteps
        return own or environment.total_timesteps or self.total_timesteps

    def command(self, environment: Environment, arm: Arm) -> list[str]:
        """:return: what follows ``headway`` to train an arm in an environment, without seed and folder."""
        options = {
            "env": environment.id,
            "total_timesteps": self.steps(environment, arm),
            "eval_every": self.eval_every,
            "eval_episodes": self.eval_episodes,
        }
        flags = {**self.flags, **environment.flags, **arm.flags}
        if isinstance(dataset := flags.get("dataset"), str):
            flags["dataset"] = dataset.replace("{data}", environment.data)
        known = {**describe(TrainOptions), **describe(trainable(arm.agent).config_class)}
        return ["train", arm.agent, *_tokens({**options, **flags}, known)]

    def run(self, environment: Environment, arm: Arm) -> Run:
        """:return: that command, resolved."""
        run = parse_train(arm.agent, self.command(environment, arm)[2:])
        assert run is not None
        return run

    def _check(self, source: str) -> None:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise ValueError(f"{source}: name must be of letters, digits, dots, dashes and underscores: {self.name!r}")
        for name in ("seeds", "environments", "arms"):
            if not getattr(self, name):
                raise ValueError(f"{source}: {name} must name at least one")
        _no_twins((str(seed) for seed in self.seeds), f"{source}: seeds")
        _no_twins((environment.label for environment in self.environments), f"{source}: labels of environments")
        _no_twins((arm.label for arm in self.arms), f"{source}: labels of arms")
        if self.baseline not in (labels := [arm.label for arm in self.arms]):
            raise ValueError(
                f"{source}: there is no arm {self.baseline!r}, the baseline: {nearest(self.baseline, labels)}"
            )
        for environment in self.environments:
            self._check_environment(environment, f"{source}: environment {environment.label!r}")
        self._check_commands(source)

    def _check_environment(self, environment: Environment, where: str) -> None:
        low, high = environment.reference_low, environment.reference_high
        if (low is None) != (high is None):
            raise ValueError(f"{where}: reference_low and reference_high belong together")
        if low is not None and high is not None and not low < high:
            raise ValueError(f"{where}: reference_low must be less than reference_high, got {low} and {high}")
        count = -(-self.steps(environment) // self.eval_every)
        if count < self.final_evaluations:
            raise ValueError(
                f"{where}: {self.steps(environment):,} steps hold {count} evaluations after training has begun, fewer "
                f"than final_evaluations: {self.final_evaluations}; train longer, or evaluate more often"
            )

    def _check_commands(self, source: str) -> None:
        parts: list[Suite | Environment | Arm] = [self, *self.environments, *self.arms]
        for part in parts:
            for flag in part.flags:
                if flag in RESERVED:
                    remedy = f"the key {flag} sets it" if flag in describe(type(self)) else "the benchmark sets it"
                    raise ValueError(f"{source}: flags cannot hold {flag!r}: {remedy}")
        for environment in self.environments:
            for arm in self.arms:
                try:
                    self.run(environment, arm)
                except (ValueError, TypeError, OSError) as cause:
                    where = f"{source}: arm {arm.label!r} in environment {environment.label!r}"
                    raise ValueError(f"{where}: {cause}") from cause


def suite_names() -> list[str]:
    """:return: the suites that Headway brings along."""
    return sorted(
        file.name.removesuffix(".yaml") for file in resources.files(__name__).iterdir() if _is_yaml(file.name)
    )


def read_suite(name: str | Path) -> Suite:
    """Read a suite.

    :param name: of a YAML file, or of a suite that Headway brings along
    :return: the suite
    :raises ValueError: there is none (the nearest ones are named), or it is broken
    """
    if not _is_yaml(str(name)) and not Path(name).is_file():
        if str(name) not in (known := suite_names()):
            raise ValueError(f"there is no suite {str(name)!r}, nor such a file: {nearest(str(name), known)}")
        text = (resources.files(__name__) / f"{name}.yaml").read_text()
    else:
        try:
            text = Path(name).read_text()
        except FileNotFoundError as cause:
            raise FileNotFoundError(f"there is no suite {name}") from cause
        except UnicodeDecodeError as cause:
            raise ValueError(f"{name} is not YAML: {cause}") from cause
    return Suite.from_dict(read_yaml(text, str(name)), str(name))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds from a command line.

    :param text: "5" for 0 to 4, "3-7", "2,5,9", or ranges and numbers mixed, "0-4,9"; a lone seed is "7-7"
    :return: the seeds
    :raises ValueError: none of these
    """
    found: list[int] = []
    for part in (f"0-{int(text) - 1}" if re.fullmatch(r"\d+", text) else text).split(","):
        if ends := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()):
            found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
        else:
            found.clear()
            break
    if not found:
        raise ValueError(f"--seeds must be a count (5), a range (3-7) or a list (2,5,9), got {text!r}")
    return tuple(found)


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def folder_name(label: str) -> str:
    """:return: a label as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", label).strip(".-")


def _no_twins(names: Iterable[str], what: str) -> None:
    """Refuse equal names, and such as would share a folder."""
    seen: dict[str, str] = {}
    for name in names:
        if not (folder := folder_name(name).lower()):
            raise ValueError(f"{what}: {name!r} holds neither letters nor digits")
        if folder in seen:
            raise ValueError(f"{what} must differ, got {seen[folder]!r} and {name!r}")
        seen[folder] = name


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold names and values, one 'name: value' per line, got {values!r}")
    return {str(key): value for key, value in values.items()}


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build one of the dataclasses above, each key and value checked."""
    known = describe(cls)
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}: {nearest(key, known)}")
    found = {}
    for info in known.values():
        if info.name in values:
            found[info.name] = _checked(info, values[info.name], where)
        elif info.default is MISSING and info.name != "flags":
            raise ValueError(f"{where} needs a key {info.name!r}: {info.doc}")
    return cls(**found)


def _checked(info: FieldInfo, value: Any, where: str) -> Any:
    if info.name == "flags":
        flags = _mapping({} if value is None else value, f"{where}: flags")
        return {key.replace("-", "_"): value for key, value in flags.items()}  # one spelling, to override the other
    value = tuple(value) if isinstance(value, list) else value
    if not fits(value, info.annotation):
        plain = getattr(info.annotation, "__name__", str(info.annotation))
        raise ValueError(f"{where}: {info.name} must be {WANTED.get(info.name, plain)}, got {value!r}")
    info.check_ranges(value, f"{where}: {info.name}")
    return value


def _filled(part: Suite | Environment | Arm) -> dict[str, Any]:
    """The fields that hold something, those with their default value too: it may be another in a later version."""
    values = {name: getattr(part, name) for name in describe(type(part))}
    return {name: value for name, value in values.items() if value not in (None, "", {})}


def _tokens(flags: Mapping[str, Any], known: Mapping[str, FieldInfo]) -> list[str]:
    """Flags as they stand on a command line."""
    tokens = []
    for name, value in flags.items():
        if name not in known:
            raise ValueError(f"there is no flag {name!r}: {nearest(name, known)}")
        annotation, flag = known[name].annotation, f"--{name.replace('_', '-')}"
        if annotation is bool and isinstance(value, bool):
            tokens.append(flag if value else f"--no-{flag[2:]}")
            continue
        value = on_or_off(value, annotation)
        if isinstance(value, dict):  # as of --set
            value = [f"{key}={json.dumps(part)}" for key, part in value.items()]
        tokens += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return tokens
