"""Hyper-parameters: one frozen dataclass per agent or method for the constructor, presets, command line and files.

A field is declared once, with its type, its default and a docstring below it; :class:`Range` in its annotation gives
the admissible interval and the unit. Everything else (checks, ``--help``, nearest names, JSON) is derived from that.
"""

import ast
import functools
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np

from ...envs.naming import nearest


@dataclass(frozen=True)
class Range:
    """An interval of admissible values, closed unless a bound is marked open, and the unit they are counted in.

    :param low: smallest admissible value
    :param high: largest admissible value
    :param unit: the unit, for the help text
    :param open_low: ``low`` itself is excluded
    :param open_high: ``high`` itself is excluded
    """

    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.open_low or self.low == -math.inf else "["
        right = ")" if self.open_high or self.high == math.inf else "]"
        interval = f"{left}{self.low:g}, {self.high:g}{right}"
        return f"{interval} {self.unit}".rstrip()


Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, open_low=True)]
Fraction = Annotated[float, Range(0, 1)]
LearningRate = Annotated[float, Range(0, 1, open_low=True)]


@dataclass(frozen=True)
class FieldInfo:
    """What is known about one configuration field.

    :param name: its name
    :param annotation: its type, without the ranges
    :param default: its default
    :param doc: the docstring below it
    :param ranges: the admissible intervals
    """

    name: str
    annotation: Any
    default: Any
    doc: str
    ranges: tuple[Range, ...]

    @property
    def help(self) -> str:
        """The docstring, followed by the admissible interval and unit."""
        return " ".join([self.doc, *(f"Range: {r}." for r in self.ranges)])

    def check_ranges(self, value: Any, label: str) -> None:
        """See that numbers lie in the ranges of the field.

        :param value: a number, a tuple of them, or anything else, which is never out of range
        :param label: what the message calls the field
        :raises ValueError: a number does not; the message names the range
        """
        for number in _numbers(value):
            for interval in self.ranges:
                if number not in interval:
                    raise ValueError(f"{label} must lie in {interval}, got {number}")


def _strip(annotation: Any) -> tuple[Any, tuple[Range, ...]]:
    """Split an annotation into the plain type and the ranges found anywhere in it."""
    if get_origin(annotation) is Annotated:
        base, *extras = get_args(annotation)
        inner, ranges = _strip(base)
        return inner, ranges + tuple(extra for extra in extras if isinstance(extra, Range))
    if get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        parts = [_strip(arg) for arg in get_args(annotation)]
        found = tuple(r for _, ranges in parts for r in ranges)
        inner_types = tuple(inner for inner, _ in parts)
        if get_origin(annotation) is tuple:
            return tuple[inner_types], found  # type: ignore[valid-type]
        return functools.reduce(lambda a, b: a | b, inner_types), found
    return annotation, ()


def _docstrings(cls: type) -> dict[str, str]:
    """Read the string literals that stand below the fields of a class, its bases included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or not hasattr(base, "__dataclass_fields__"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, following in zip(body.body, body.body[1:], strict=False):
            is_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_doc:
                docs[node.target.id] = " ".join(str(following.value.value).split())  # type: ignore[attr-defined]
    return docs


def describe(cls: type) -> Mapping[str, FieldInfo]:
    """List the fields of a configuration class with their types, defaults, documentation and ranges.

    :param cls: a dataclass
    :return: field name to :class:`FieldInfo`, in the order of declaration
    """
    return _describe(cls)


@functools.cache
def _describe(cls: type) -> Mapping[str, FieldInfo]:
    hints = get_type_hints(cls, include_extras=True)
    docs = _docstrings(cls)
    described = {}
    for field in (field for field in fields(cls) if field.name not in getattr(cls, "unused", ())):
        annotation, ranges = _strip(hints[field.name])
        unique = tuple(dict.fromkeys(ranges))
        described[field.name] = FieldInfo(field.name, annotation, field.default, docs.get(field.name, ""), unique)
    return described


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value fits a plain type: the handful of forms that configuration fields use.

    :param value: the value
    :param annotation: the type, without ranges
    :return: whether it fits
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in args and type(value) in {type(arg) for arg in args}
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, annotation) and not (annotation is int and isinstance(value, bool))


def _numbers(value: Any) -> list[float]:
    """The numbers in a value: itself, or the entries of a tuple."""
    items = value if isinstance(value, tuple) else (value,)
    return [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]


def _tuples(value: Any) -> Any:
    """Lists to tuples: JSON, YAML and users write the one where a frozen field holds the other."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _plain(value: Any, annotation: Any) -> Any:
    """A value as a field holds it: not as a list, one of NumPy's scalars, or a text of several words, "2 episode"."""
    if isinstance(value, str) and " " in value and not fits(value, annotation):
        words = tuple(int(word) if word.isdecimal() else word for word in value.split())
        return words if fits(words, annotation) else value
    return value.item() if isinstance(value, np.generic) else _tuples(value)


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Config:
    """What all hyper-parameters have in common: checks of types and ranges, tuples given as lists, names from files."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Fields of a base that mean nothing here: they keep their defaults, and are known to nobody."""

    live: ClassVar[frozenset[str]] = frozenset()
    """Fields that count when they are changed in the middle of training: whoever uses them reads them at each use, or
    takes them up in ``_config_changed``."""

    def __post_init__(self) -> None:
        for name, info in describe(type(self)).items():
            value = _plain(getattr(self, name), info.annotation)
            object.__setattr__(self, name, value)
            if not fits(value, info.annotation):
                wanted = str(info.annotation).replace("typing.", "").removeprefix("<class '").removesuffix("'>")
                raise TypeError(f"{self._label(name)} must be {wanted}, got {value!r}{self._remedy(name, value)}")
            info.check_ranges(value, self._label(name))

    @classmethod
    def _label(cls, name: str) -> str:
        """:return: what errors call a field."""
        return f"{cls.__name__}.{name}"

    def _remedy(self, name: str, value: Any) -> str:
        """:return: how the error for a value of the wrong type ends: what to write instead, where that is known."""
        if isinstance(value, float) and value.is_integer():
            return f": write {value:.0f}"
        return ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the configuration from names and values, as read from JSON, YAML or keyword arguments.

        :param values: field names to values; fields that are not named keep their defaults
        :return: the configuration
        :raises TypeError: an unknown field (the nearest names are given) or a value of the wrong type
        :raises ValueError: a value outside its range
        """
        known = describe(cls)
        for name in values:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no field {name!r}: {nearest(name, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """:return: field names to values in JSON's terms: tuples as lists, which :meth:`from_dict` turns back."""
        return {name: _lists(getattr(self, name)) for name in describe(type(self))}

    def changes(self) -> dict[str, Any]:
        """:return: only the fields that differ from their defaults."""
        known = describe(type(self)).values()
        return {info.name: getattr(self, info.name) for info in known if getattr(self, info.name) != info.default}


@dataclass(frozen=True, kw_only=True)
class AgentConfig(Config):
    """What every agent has: optimisation, networks, execution. Names are Stable-Baselines3's where it has them."""

    live = frozenset({"learning_rate", "learning_rate_schedule", "gamma", "batch_size", "max_grad_norm"})

    default_envs: ClassVar[int] = 1
    """Environments that step together where nobody says how many."""

    learning_rate: LearningRate = 3e-4
    """Step size of Adam, for every network (Stable-Baselines3's default for SAC)."""

    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Keep the learning rate, or let it fall linearly to zero over total_timesteps."""

    gamma: Fraction = 0.99
    """Discount factor per environment step (Stable-Baselines3's default for SAC and TD3)."""

    batch_size: Count = 256
    """Rows per gradient step (Stable-Baselines3's default for SAC and TD3)."""

    net_arch: tuple[Count, ...] = (256, 256)
    """Hidden layer widths of actor and critics (Stable-Baselines3's default for SAC and TD3)."""

    activation: Literal["relu", "tanh", "elu"] = "relu"
    """Non-linearity between layers."""

    max_grad_norm: Positive | None = None
    """Clip each network's gradient to this Euclidean norm; none does not clip."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the networks' products; weights, moments, targets and losses stay float32. bfloat16 is faster on CPUs
    that have units for it (AVX512-BF16, AMX) and on GPUs since Ampere, and refused elsewhere."""

    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """What is compiled: nothing; the losses, by this mode of torch.compile (needs a C++ compiler on a CPU, Triton on a
    GPU). On a GPU reduce-overhead records whole gradient steps as CUDA graphs, to the same bits as off (but for PPO's
    linear clip range, a float32 there); max-autotune does both."""

    def rate_left(self, remaining: float) -> float:
        """What the schedule leaves of the learning rate.

        :param remaining: share of the training that is still to come, from 1 to 0
        :return: share of the learning rate
        """
        return remaining if self.learning_rate_schedule == "linear" else 1.0

    @property
    def perceptron(self) -> dict[str, Any]:
        """The keywords that networks take of it."""
        return {name: getattr(self, name) for name in ("net_arch", "activation", "precision")}

    def _remedy(self, name: str, value: Any) -> str:
        if name == "learning_rate" and callable(value):  # a habit of Stable-Baselines3, which a file cannot hold
            return "; for a linear decay pass a number and learning_rate_schedule='linear'"
        if isinstance(value, str) and value.startswith("lin_"):  # a habit of RL Zoo
            return f"; for a linear decay pass {value.removeprefix('lin_')}, and {name}_schedule='linear'"
        return super()._remedy(name, value)


@dataclass(frozen=True, kw_only=True)
class StoreConfig(AgentConfig):
    """What agents with a replay store add."""

    live = AgentConfig.live | {"learning_starts"}

    buffer_size: Count = 1_000_000
    """Capacity of the replay store in transitions, over all environments together (Stable-Baselines3's default)."""

    learning_starts: Annotated[int, Range(0, unit="environment steps")] = 100
    """Steps with uniformly random actions before the first gradient step (Stable-Baselines3's default)."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(StoreConfig):
    """What agents add that fill a replay store step by step."""

    live = StoreConfig.live | {"train_freq"}

    train_freq: Count | tuple[Count, Literal["step", "episode"]] = 1
    """Steps of every environment between trainings, whatever their number; "1 episode" counts episodes instead."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig(AgentConfig):
    """What agents with slowly following targets add."""

    live = AgentConfig.live | {"tau"}

    tau: Annotated[float, Range(0, 1, open_low=True)] = 0.005
    """Share of the online weights that enters the target networks per update (Stable-Baselines3's default)."""


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig(TargetConfig):
    """What TD3 and its relatives have: critics of which the least counts, a delayed policy, a smoothed target."""

    live = TargetConfig.live | {"policy_delay", "target_policy_noise", "target_noise_clip"}

    policy_delay: Count = 2
    """Critic updates per update of the actor and the targets."""

    target_policy_noise: Annotated[float, Range(0, unit="half the action range")] = 0.2
    """Standard deviation of the noise that smooths the target policy."""

    target_noise_clip: Annotated[float, Range(0, unit="half the action range")] = 0.5
    """Bound on that noise."""

    n_critics: Count = 2
    """Critics, of whose target values the least is used."""


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(TargetConfig, ReplayConfig):
    """What agents add that learn from a replay store in steps of one kind."""

    live = ReplayConfig.live | TargetConfig.live | {"gradient_steps"}

    gradient_steps: Annotated[int, Range(-1)] = 1
    """Gradient steps per training and environment: 1 does 16 where 16 environments step together, so that more of them
    change nothing but the speed (Stable-Baselines3 would do 1). -1 does as many as environment steps were collected."""
