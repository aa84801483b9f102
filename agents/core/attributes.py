"""What can be read and set on an agent by name: each assignment counts, or is refused with the way to do it.

They are descriptors, so that other attributes cost what they always do.
"""

from typing import Any

from .config import Config, describe
from .sb3_names import ATTRIBUTES, KEPT, KEYWORDS, Missing, as_fields


def expose(cls: type[Any]) -> None:
    """Give a class of agents the fields of its configuration as attributes.

    :param cls: an agent's class, which has its ``config_class``
    """
    for name in describe(cls.config_class):
        if isinstance(getattr(cls, name, None), (_Field, _Lacking)) or not hasattr(cls, name):
            setattr(cls, name, _Field(name))


def guard(cls: type[Any]) -> None:
    """Decide the attributes that all agents have or lack.

    :param cls: the base of agents
    """
    cls.config = _Configuration()
    cls.lr_schedule = _LearningRateSchedule()
    for name, missing in (KEYWORDS | ATTRIBUTES).items():
        setattr(cls, name, _Lacking(name, missing))
    for name, way in KEPT.items():
        setattr(cls, name, _Kept(name, way))


def _is_built(agent: Any) -> bool:
    return "policy" in vars(agent)


class _Configuration:
    """The configuration. Another one takes effect, if it differs only in what may change while an agent trains."""

    # Without __get__, so that reading it costs what reading any attribute does.
    def __set__(self, agent: Any, config: Config) -> None:
        before = vars(agent).get("config")
        if not _is_built(agent) or before is None:
            vars(agent)["config"] = config
            return
        if type(config) is not type(before):
            raise AttributeError(
                f"agent.config is a {type(before).__name__}, got {config!r}: use dataclasses.replace(agent.config, …)"
            )
        for name in describe(type(config)):
            if getattr(config, name) != getattr(before, name) and name not in config.live:
                raise AttributeError(
                    f"{type(agent).__name__}.{name} is {getattr(before, name)!r} and cannot become "
                    f"{getattr(config, name)!r} once the agent is built: give it to the constructor, or, where the "
                    f"networks' shapes allow it, to {type(agent).__name__}.load(path, env, {name}=…)"
                )
        vars(agent)["config"] = config
        try:
            agent._config_changed(before)
        except Exception:
            vars(agent)["config"] = before
            raise


class _Field:
    """A field of the configuration."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, agent: Any, owner: type[Any] | None = None) -> Any:
        return self if agent is None else getattr(agent.config, self.name)

    def __set__(self, agent: Any, value: Any) -> None:
        config = agent.config
        fields = as_fields(type(config), {self.name: value})
        agent.config = type(config).from_dict(config.to_dict() | fields)


class _Lacking:
    """Something that Stable-Baselines3's agents have: reads as its neutral value, and is set to nothing else."""

    def __init__(self, name: str, missing: Missing) -> None:
        self.name, self.missing = name, missing

    def __get__(self, agent: Any, owner: type[Any] | None = None) -> Any:
        if agent is None:
            return self
        if not self.missing.neutral:
            raise AttributeError(f"{type(agent).__name__}.{self.name} is not offered by Headway: {self.missing.way}")
        return self.missing.neutral[0]

    def __set__(self, agent: Any, value: Any) -> None:
        if not self.missing.accepts(value):
            raise AttributeError(
                f"{type(agent).__name__}.{self.name} cannot be set, and is not offered by Headway: {self.missing.way}"
            )


class _Kept:
    """Something that is set once; without ``__get__``, as :class:`_Configuration`."""

    def __init__(self, name: str, way: str) -> None:
        self.name, self.way = name, way

    def __set__(self, agent: Any, value: Any) -> None:
        if _is_built(agent) and value is not vars(agent).get(self.name):
            raise AttributeError(f"{type(agent).__name__}.{self.name} is not set by assignment: {self.way}")
        vars(agent)[self.name] = value


class _LearningRateSchedule:
    """The learning rate by what remains of training, as a function."""

    def __get__(self, agent: Any, owner: type[Any] | None = None) -> Any:
        if agent is None:
            return self
        config = agent.config
        return lambda left: config.learning_rate * config.rate_left(left)

    def __set__(self, agent: Any, value: Any) -> None:
        raise AttributeError(
            f"{type(agent).__name__}.lr_schedule is not set by assignment: set agent.learning_rate, and "
            "agent.learning_rate_schedule = 'linear' or 'constant'"
        )
