"""Algorithms of Stable-Baselines3's kind as rivals: ``sb3:PPO``, ``sb3_contrib:TQC``, ``module:Class`` of one's own.

They are trained in the run folders of Headway's agents, with the same evaluations, and can be arms of a suite. Their
files are their own: they hold pickles, and no state from which a run could go on exactly.
"""

import functools
import inspect
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from ..agents import AGENTS
from ..agents.core.config import Config
from ..agents.core.plain_yaml import read_yaml
from ..agents.core.registry import agent_name, find_agent, find_class
from ..envs.naming import nearest

PACKAGES = {"sb3": "stable_baselines3", "sb3_contrib": "sb3_contrib"}
"""What stands before the colon of a rival's name, and the package that is meant."""

_SET_OTHERWISE = {"self", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}


@dataclass(frozen=True, kw_only=True)
class PeerConfig(Config):
    """Hyper-parameters of an algorithm that is not Headway's: what its constructor takes, in its own words."""

    set: tuple[str, ...] = ()
    """Keywords of the algorithm's constructor, name=value each, with values as in YAML: learning_rate=1e-3
    "policy_kwargs={net_arch: [64, 64], activation_fn: ReLU}"."""


class Peer(BaseAlgorithm):
    """What ``headway train`` asks of an agent, for algorithms that do not have it; see :func:`peer`."""

    algorithm: ClassVar[type[BaseAlgorithm]]
    config_class: ClassVar[type[PeerConfig]] = PeerConfig
    stop_requested = False
    pending_updates = 0

    @classmethod
    def settings(cls, config: PeerConfig) -> dict[str, Any]:
        """Read ``--set``.

        :param config: what was given
        :return: keywords of the constructor
        :raises ValueError: one that it does not have, or that a flag of headway train sets
        """
        parameters = inspect.signature(cls.algorithm.__init__).parameters
        known = parameters.keys() - _SET_OTHERWISE
        found = {}
        for text in config.set:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"--set takes name=value, got {text!r}")
            if name not in known:
                raise ValueError(f"--set {text}: {name_of(cls)} has no {name!r} to set: {nearest(name, known)}")
            found[name] = _value(value, text)
        return found

    @classmethod
    def build(cls, policy: str, env: VecEnv, config: PeerConfig, *, seed: int, device: str) -> "Peer":
        """Make the algorithm.

        :param policy: its policy, unless ``--set policy=…`` names another
        :param env: to train in
        :param config: its hyper-parameters
        :param seed: of its random streams
        :param device: where it computes
        :return: it
        :raises ValueError: its constructor refuses
        """
        try:
            return cls(**{"policy": policy, "env": env, "seed": seed, "device": device, **cls.settings(config)})
        except (TypeError, ValueError, AssertionError) as cause:  # the last where an action space does not fit
            raise ValueError(f"{name_of(cls)} cannot be made: {cause}") from cause

    def request_stop(self) -> None:
        """Ask ``learn`` to return: the callback of ``headway train`` passes it on after the step."""
        self.stop_requested = True

    @property
    def remaining_timesteps(self) -> int:
        """Steps still missing to the ``total_timesteps`` of ``learn``."""
        return max(self._total_timesteps - self.num_timesteps, 0)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "stop_requested"]


@functools.cache
def peer(algorithm: Any) -> type[Peer]:
    """Give an algorithm what ``headway train`` asks for.

    :param algorithm: of Stable-Baselines3's kind
    :return: a class that trains, and saves, as it does
    :raises ValueError: it is of another kind
    """
    # Not ARS of sb3-contrib, say: it learns from whole episodes and tells nothing of their steps.
    if not issubclass(algorithm, (OnPolicyAlgorithm, OffPolicyAlgorithm)) or inspect.isabstract(algorithm):
        raise ValueError(
            f"{algorithm.__module__}:{algorithm.__name__} cannot be trained: it is neither an agent of Headway's kind "
            "nor an on-policy or off-policy algorithm of Stable-Baselines3's"
        )
    about = {"algorithm": algorithm, "__doc__": algorithm.__doc__}
    made: type[Peer] = type(algorithm.__name__, (Peer, algorithm), about)
    return made


def trainable(name: str) -> type[Any]:
    """Look up what can be trained, for somebody who trusts the name: a module in it is imported.

    :param name: one of Headway's agents, ``sac``; ``module:Class`` of an agent of one's own; ``sb3:SAC``,
        ``sb3_contrib:TQC`` or ``module:Class`` of an algorithm of Stable-Baselines3's kind
    :return: the agent's class, or a :class:`Peer`
    :raises ValueError: there is none; the message says what is near, or missing
    """
    package, colon, cls = name.rpartition(":")
    if not colon:
        return find_agent(name)
    package = PACKAGES.get(package, package)
    if package == "sb3_contrib" and find_spec(package) is None:
        raise ValueError(f"agent {name!r}: sb3-contrib is not installed: pip install 'headway-rl[contrib]'")
    found: Any = find_class(f"{package}:{cls}")
    return found if found in AGENTS.values() else peer(found)


def is_trusted(name: str) -> bool:
    """Whether looking a name up runs no code but Headway's, Stable-Baselines3's, or what is imported already."""
    return ":" not in name or name in AGENTS or name.rpartition(":")[0] in PACKAGES


def name_of(cls: type[Any]) -> str:
    """:return: the name of an agent or a :class:`Peer` in files; :func:`trainable` finds it again."""
    if not issubclass(cls, Peer):
        return agent_name(cls)
    module = cls.algorithm.__module__
    short = {package: name for name, package in PACKAGES.items()}.get(module.partition(".")[0], module)
    return f"{short}:{cls.__name__}"


def dump_logs(agent: Any) -> None:
    """Write a line of progress, as the agent does by itself where it is not told to leave that to others.

    :param agent: ours, or a rival; one that is told the number of its rounds is
    """
    if isinstance(agent, Peer) and isinstance(agent, OnPolicyAlgorithm):
        agent.dump_logs(agent.num_timesteps // (agent.n_steps * agent.n_envs))
    else:
        agent.dump_logs()


def is_sb3_file(path: Path) -> bool:
    """Whether a file is one that Stable-Baselines3 has saved."""
    return zipfile.is_zipfile(path) and "_stable_baselines3_version" in zipfile.ZipFile(path).namelist()


def load_peer(cls: type[Peer], path: Path, device: torch.device | str) -> BaseAlgorithm:
    """Load what a rival has saved, which runs whatever code the file holds: it is a pickle.

    :param cls: the rival
    :param path: the file
    :param device: where to load it
    :return: the algorithm
    :raises ValueError: it is no file of the algorithm's
    """
    try:
        return cls.algorithm.load(path, device=device)
    except Exception as cause:  # unpickling: anything can happen
        text = " ".join(str(cause).split())
        raise ValueError(f"{path} cannot be loaded as {name_of(cls)}: {type(cause).__name__}: {text}") from cause


def _value(text: str, where: str) -> Any:
    """:return: what a text means as YAML; with numbers like 1e-3, which YAML 1.1 reads as texts."""
    value = _numbers(read_yaml(text, f"--set {where}: the value"))
    if isinstance(value, Mapping) and isinstance(name := value.get("activation_fn"), str):
        value = {**value, "activation_fn": getattr(nn, name, name)}
    return tuple(value) if isinstance(value, list) else value  # as train_freq=[1, episode] is wanted


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
