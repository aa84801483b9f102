"""The files of an agent: policies, and checkpoints that training goes on from as if it had never stopped."""

import io
import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from ...wrappers.specs import inner_id, is_batch, make_single, make_spec, named, spec_from_json, spec_to_json, unasked
from .config import AgentConfig
from .data import diverged, first_broken
from .environment import AgentInEnvironment
from .files import contents, list_checkpoints
from .files.budget import Budget
from .files.checkpoints import choose_run, run_of
from .files.contents import Contents
from .files.errors import FileFormatError, one_line, reading
from .normalization import checked_state
from .registry import agent_name
from .spaces import space_from_json, space_to_json

_PLAIN = ("seed", "verbose", "tensorboard_log", "stats_window_size")
"""What the constructor takes besides hyper-parameters, and ``load`` may change."""

log = logging.getLogger("headway")


class SavedAgent(AgentInEnvironment):
    """An agent in files. Loading one makes it by its constructor, from a configuration, and fills in its networks."""

    config_class: ClassVar[type[AgentConfig]]
    arguments: ClassVar[tuple[str, ...]]
    execution: ClassVar[tuple[str, ...]]
    only_initial: ClassVar[tuple[str, ...]]
    loads_afresh: ClassVar[Mapping[str, str]]
    policy_name: str
    seed_is_drawn: bool
    scales_buffers: bool
    reward_unit: float
    _reward_unit: float
    resumed_extra: Any
    _budget: AbstractContextManager[Any]

    # -- policies ----------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the policy and everything it takes to go on training it but the experience: see :meth:`save_checkpoint`.

        The file is a zip of JSON and safetensors. It holds no pickle, and loading it runs no code.

        :param path: file to write (".zip" is added to a name without a suffix) or a binary stream; an existing file is
            replaced only once the new one is complete
        :param exclude: must be empty: the file holds a fixed set of entries, not the object's attributes
        :param include: likewise
        :raises headway.agents.DivergedError: weights are NaN or infinite
        """
        if exclude or include:
            raise ValueError("Headway's files hold a fixed set of entries: exclude and include do not apply")
        contents.write_policy(path, self._manifest(), self._sound_networks(), self._normalizer_state())

    def _manifest(self) -> dict[str, Any]:
        return {
            "class": agent_name(type(self)),
            "policy": self.policy_name,
            "config": self.config.to_dict(),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "n_envs": self.n_envs,
            "env_id": self.env_id,
            "env_spec": spec_to_json(self.env_spec),
            "seed": self.seed,
            "seed_is_drawn": self.seed_is_drawn,
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            "episodes": self._episode_num,
            "stats_window_size": self._stats_window_size,
            "scaled_buffers": self.scales_buffers,
            "reward_unit": self.reward_unit,
            "threads": torch.get_num_threads(),
            "versions": contents.versions(),
        }

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **overrides: Any,
    ) -> Self:
        """Load a saved agent.

        :param path: file, with or without ".zip", or a binary stream
        :param env: environment to go on in; not needed to predict
        :param device: where to load it
        :param custom_objects: hyper-parameters to change, in Stable-Baselines3's spelling of ``overrides``
        :param print_system_info: print the versions that wrote the file
        :param force_reset: a loaded agent starts a new episode; :meth:`resume` does not
        :param overrides: hyper-parameters, ``seed``, ``verbose`` or ``tensorboard_log`` to change, and what the agent
            lists in :attr:`arguments`
        :return: the agent
        :raises FileFormatError: (a ``ValueError``) the file is broken, foreign, newer, or another agent's
        :raises ValueError: the environment's spaces differ from the policy's
        :raises TypeError: an override that is no hyper-parameter, or one that only says what weights begin with
        """
        if not force_reset:
            raise ValueError(f"a policy file holds no episode to go on with: use {cls.__name__}.resume(folder, env)")
        overrides = {**(custom_objects or {}), **overrides}
        for name in cls.only_initial:
            if name in overrides:
                raise TypeError(f"{name} says what weights begin with, and those are in the file: leave it out")
        read = contents.read(path, ("policy", "checkpoint"))
        if print_system_info:
            print("\n".join(f"{name}: {version}" for name, version in read.manifest["versions"].items()))
        return cls._from_contents(read, env, device, overrides)

    @classmethod
    def _from_contents(cls, read: Contents, env: Any, device: torch.device | str, overrides: dict[str, Any]) -> Self:
        """Make the agent that a file describes, and fill in its networks."""
        manifest, path = read.manifest, read.path
        if manifest["class"] != agent_name(cls):
            raise FileFormatError(
                f"{path} holds a {manifest['class']} agent, not {agent_name(cls)}: "
                f"use {manifest['class']}.load, or headway.agents.load for any agent"
            )
        plain = {name: overrides.pop(name) for name in _PLAIN if name in overrides}
        plain = {"seed": manifest["seed"], "stats_window_size": manifest["stats_window_size"]} | plain
        held = read.networks.values()
        numbers = sum(tensor.numel() for tensor in held)
        try:
            # As a configuration, never as keywords: a file that names "env" there must not choose what is imported.
            agent = cls(  # type: ignore[call-arg]  # whose constructor is ActorCriticAgent's
                manifest["policy"],
                device=device,
                config=cls.config_class.from_dict(manifest["config"]),
                _init_setup_model=False,
                **plain,
                **overrides,
            )
            agent.seed_is_drawn |= plain["seed"] == manifest["seed"] and manifest.get("seed_is_drawn", False)
            agent.observation_space = space_from_json(manifest["observation_space"], numbers)
            agent.action_space = space_from_json(manifest["action_space"], numbers)
            agent.check_spaces(agent.observation_space, agent.action_space)
            agent.n_envs, agent.env_spec = manifest["n_envs"], _saved_spec(manifest)
        except (KeyError, TypeError, ValueError) as cause:
            if overrides:
                raise
            raise FileFormatError(f"{path} does not describe a {cls.__name__} of this version: {cause}") from cause
        agent.scales_buffers = manifest.get("scaled_buffers", cls.flattens)  # DCAC always did
        agent._reward_unit = manifest.get("reward_unit", 1.0)
        with reading(path):
            agent._statistics = None if read.normalizer is None else checked_state(read.normalizer)
        if env is not None:
            agent.attach_env(env)
        with nullcontext() if overrides else reading(path):  # an override may be at fault as well
            # One that changes networks may make them larger than those in the file.
            grown = overrides.keys() - {*cls.arguments, *cls.execution, *cls.config_class.live}
            agent._budget = nullcontext() if grown else Budget(held)
            agent._setup_model()
            agent._budget = nullcontext()
        try:
            agent.modules.load_state(agent._networks_of(read))
        except ValueError as cause:
            reason = ", ".join(overrides) or "its own configuration"
            raise FileFormatError(f"{path} does not fit {reason}: {cause}") from cause
        agent.num_timesteps, agent._n_updates = manifest["num_timesteps"], manifest["n_updates"]
        agent._episode_num = manifest["episodes"]
        return agent

    def _networks_of(self, read: Contents) -> Mapping[str, Tensor]:
        """The weights in a file, without those of networks that begin anew under another configuration."""
        networks = dict(read.networks)
        for field, network in self.loads_afresh.items():
            if getattr(self.config, field) != self.config_class.from_dict(read.manifest["config"]).to_dict()[field]:
                networks = {name: weights for name, weights in networks.items() if not name.startswith(f"{network}.")}
                own = self.modules.state().items()
                networks |= {name: weights.clone() for name, weights in own if name.startswith(f"{network}.")}
        return networks

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Take up weights.

        :param load_path_or_dict: a policy file of this class, or what ``get_parameters`` returned
        :param exact_match: of a dict: all of it must be there
        :param device: of a dict
        :raises FileFormatError: (a ``ValueError``) the file is broken or foreign, or does not fit
        """
        if isinstance(load_path_or_dict, Mapping):
            super().set_parameters(dict(load_path_or_dict), exact_match, device)
            return
        read = contents.read(load_path_or_dict, ("policy", "checkpoint"))
        try:
            self.modules.load_state(read.networks)
        except ValueError as cause:
            raise FileFormatError(f"{read.path} does not fit this {type(self).__name__}: {cause}") from cause

    def _sound_networks(self) -> dict[str, Tensor]:
        """:return: what files hold of the networks; a file that nobody could go on from is not written.

        :raises DivergedError: a number in them is not finite
        """
        state = self.modules.state()
        if (name := first_broken(state)) is not None:
            raise diverged(self, f"its weights {name} are not finite")
        return state

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, directory: str | Path, *, extra: Any = None, keep: int | None = 2) -> Path:
        """Save everything that training needs: :meth:`resume` goes on as if it had never stopped, bit for bit on a CPU.

        Networks, targets, optimisers, every part that was registered (stores, random streams, counters, environments:
        see :func:`headway.wrappers.capture`; one that cannot be copied is restarted on resume, and the log says so).

        :param directory: where checkpoints lie; made if missing. Those of other runs there are left alone.
        :param extra: nested plain data of the caller's, given back as ``resumed_extra``
        :param keep: how many of this run's newest to keep; None keeps all
        :return: the file written
        :raises headway.agents.DivergedError: weights are NaN or infinite; earlier checkpoints are untouched
        :raises OSError: it could not be written; earlier checkpoints are untouched
        """
        networks = self._sound_networks()
        parts = {name: part.state() for name, part in self.parts.items()} | {"extra": extra}
        folder = Path(directory)
        run = choose_run(folder, self.num_timesteps, self.run_numbers.get(folder.resolve()))
        path = contents.write_checkpoint(folder, self._manifest(), networks, parts, keep, run)
        self.run_numbers[folder.resolve()] = run
        self.last_checkpoint = path
        return path

    @classmethod
    def resume(
        cls,
        directory: str | Path,
        env: Any = None,
        device: torch.device | str = "auto",
        *,
        trust_env: bool = False,
        **options: Any,
    ) -> Self:
        """Go on from the newest complete checkpoint, of the newest run where several have saved.

        ``agent.learn(agent.remaining_timesteps, reset_num_timesteps=False)`` then finishes the run.

        Versions and threads other than those of the run are mentioned in the log: sums may then round differently.

        :param directory: where checkpoints lie, or the folder of a run of ``headway train``
        :param env: an environment built as the interrupted one was; made from its spec where that was saved
        :param device: where to load it
        :param trust_env: make the environment of the saved spec even if that imports modules that are not imported
            already, or writes files
        :param options: ``verbose`` or ``tensorboard_log``, what the agent lists in :attr:`arguments`, and
            hyper-parameters that may change while it trains (its configuration's ``live``)
        :return: the agent
        :raises TypeError: an option that would make it another run
        :raises FileNotFoundError: no complete checkpoint there
        :raises FileFormatError: (a ``ValueError``) it is another agent's
        """
        may = {"verbose", "tensorboard_log", *cls.arguments, *cls.execution, *cls.config_class.live}
        for name in options.keys() - may:
            raise TypeError(f"resume goes on with the run as it was, {name} included: leave it out, or use load")
        directory = Path(directory)
        if not list_checkpoints(directory) and (directory / "checkpoints").is_dir():
            directory /= "checkpoints"
        read = contents.read_newest(directory)
        manifest, path = read.manifest, read.path
        if env is None and not cls.arguments:
            env = _saved_env(read, trust_env)
        agent = cls._from_contents(read, env, device, dict(options))
        if agent.n_envs != manifest["n_envs"]:
            raise ValueError(f"{path} was saved with {manifest['n_envs']} environments, env has {agent.n_envs}")
        contents.mention_versions(path, manifest)
        if manifest["threads"] != torch.get_num_threads():
            log.warning(
                "saved with %d torch threads, resuming with %d: sums may round differently (torch.set_num_threads)",
                manifest["threads"],
                torch.get_num_threads(),
            )
        if read.parts.keys() != agent.parts.keys() | {"extra"}:
            odd = sorted(read.parts.keys() ^ (agent.parts.keys() | {"extra"}))
            raise FileFormatError(f"{path} does not hold just what {cls.__name__} needs to go on: {', '.join(odd)}")
        for name, part in agent.parts.items():
            with reading(f"{path}, {name}"):
                part.load_state(read.parts[name])
        agent.resumed_extra, agent.last_checkpoint = read.parts["extra"], Path(path)
        agent.run_numbers = {Path(directory).resolve(): run_of(path)}
        return agent


def _saved_spec(manifest: Mapping[str, Any]) -> EnvSpec | None:
    """The spec that a file holds of its environment; earlier versions wrote a name instead."""
    if (text := manifest.get("env_spec")) is not None:
        return spec_from_json(text)
    return named(manifest["env_id"]) if manifest.get("env_id") and "env_spec" not in manifest else None


def _saved_env(read: Contents, trusted: bool) -> Any:
    """Make the environment that a checkpoint was saved with."""
    manifest, path, rows = read.manifest, read.path, read.manifest["n_envs"]
    with reading(path):
        spec = _saved_spec(manifest)
    if spec is None:
        raise ValueError(
            f"{path} was saved with {rows} environments of id {manifest.get('env_id')}: pass env=, built as it was then"
        )
    if not trusted and (what := unasked(spec)) is not None:
        raise ValueError(
            f"{path} was saved with environment {one_line(inner_id(spec))}, which would {one_line(what)}: pass env=, "
            "import the module first, or, if you trust the file, pass trust_env=True"
        )
    shown = read.parts.get("environment")
    seen = shown.get("obs") if isinstance(shown, Mapping) else None
    if rows != 1 and (not isinstance(seen, (Tensor, Mapping)) or _rows_of(seen) != rows):
        raise FileFormatError(f"{path} names {rows} environments, but does not hold as many: pass env=")
    if rows == 1 or is_batch(spec):
        return make_spec(spec, rows)
    return DummyVecEnv([lambda: Monitor(make_single(spec))] * rows)


def _rows_of(obs: Any) -> int | None:
    """:return: how many rows saved observations have; None: they are none"""
    parts = list(obs.values()) if isinstance(obs, Mapping) else [obs]
    sizes = {len(part) if isinstance(part, Tensor) and part.dim() else None for part in parts}
    return sizes.pop() if len(sizes) == 1 else None
