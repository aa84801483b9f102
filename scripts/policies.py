"""Saved policies: which file is meant, what is in it, and the environment that it was trained in."""

from dataclasses import dataclass
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from .. import agents
from ..agents import ActorCriticAgent
from ..agents.core.files import list_checkpoints, read_archive, unpack
from ..agents.core.files.errors import reading
from ..agents.core.normalization import checked_state, load_normalizer_state
from ..envs import is_batched
from .options import refuse_unasked
from .peers import Peer, is_sb3_file, load_peer, name_of, trainable
from .runs import read_run
from .worlds import World


def policy_file(path: Path) -> Path:
    """The policy meant by a file or a run folder.

    :param path: file, with or without ".zip", or run folder
    :return: the file
    :raises FileNotFoundError: there is none
    """
    if path.is_dir():
        candidates = [path / "best.zip", path / "final.zip", *list_checkpoints(path / "checkpoints")]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        raise FileNotFoundError(f"{path} holds no best.zip, final.zip or checkpoint yet")
    if not path.exists() and not (path := path.with_name(f"{path.name}.zip")).exists():
        raise FileNotFoundError(f"there is no policy at {path.with_suffix('')} or {path}")
    return path


def normalised(env: VecEnv, path: Path) -> VecEnv:
    """Put the observation statistics that a policy was trained with around an environment, if it was with any.

    :param env: the environment
    :param path: the policy's file
    :return: the environment, wrapped and frozen where needed
    """
    archive = read_archive(path)
    state = archive.manifest.get("normalizer")
    if state is None:
        return env
    with reading(path):
        state = unpack(state, archive.members["normalizer"])
        settings = checked_state(state)
        keys = settings["norm_obs_keys"]
        wrapped = VecNormalize(env, training=False, norm_obs=settings["norm_obs"], norm_obs_keys=keys and list(keys))
        load_normalizer_state(wrapped, state)
    wrapped.norm_reward = False
    return wrapped


@dataclass(frozen=True)
class Policy:
    """What is evaluated.

    :param path: its file
    :param name: of its class
    :param agent: it
    :param world: where it was trained, if that is known
    """

    path: Path
    name: str
    agent: BaseAlgorithm
    world: World | None

    def in_(self, env: VecEnv) -> VecEnv:
        """:return: an environment with the statistics that the policy was trained with around it.

        :raises ValueError: its spaces are not the policy's
        """
        if not isinstance(self.agent, ActorCriticAgent):
            check_for_correct_spaces(env, self.agent.observation_space, self.agent.action_space)
            return env
        env = normalised(env, self.path)
        self.agent.attach_env(env)
        return env


def read_policy(path: Path, name: str | None, device: str) -> Policy:
    """Load a policy.

    :param path: its file
    :param name: of its class, as for ``headway train``, for somebody who trusts it; None: the file says, and nothing is
        imported
    :param device: where to load it
    :return: it
    :raises ValueError: it is broken, or of another class
    """
    cls = None if name is None else trainable(name)
    if cls is not None and issubclass(cls, Peer):
        return Policy(path, name_of(cls), load_peer(cls, path, device), _world_of_run(path.parent))
    if cls is None and is_sb3_file(path):
        raise ValueError(
            f"{path} is a file of Stable-Baselines3's: name its class, as --agent sb3:PPO, if you trust it; "
            "loading it runs whatever code it holds"
        )
    agent = agents.load(path, device=device) if cls is None else cls.load(path, device=device)
    return Policy(path, name_of(type(agent)), agent, None if agent.env_spec is None else World.of_spec(agent.env_spec))


def _world_of_run(folder: Path) -> World | None:
    """:return: the environment of a run folder; None where it is none."""
    options = read_run(folder)["options"] if (folder / "config.json").exists() else {}
    if "env" not in options:
        return None
    limit = options.get("max_episode_steps")
    return World(options["env"], options.get("delay"), options.get("delay_form", "dict"), max_episode_steps=limit)


def world_of(policy: Policy, env: str | None, trust_env: bool) -> World:
    """Choose what a policy acts in.

    :param policy: it
    :param env: what is asked for; None: what the policy was trained in
    :param trust_env: make what the policy's file names, whatever that imports
    :return: what is asked for; as the policy's file describes it, if that is of the same id
    :raises ValueError: neither says anything, or the file is not to be trusted so far
    """
    own, asked = policy.world, None if env is None else World.of(env)
    if own is None and asked is None:
        raise ValueError(f"{policy.path} does not say which environment it was trained in: pass --env")
    if asked is not None and (own is None or asked.env_id != own.env_id or asked.delay is not None):
        return asked
    assert own is not None
    if asked is not None:
        is_batched(asked.env_id)  # imports its module, as was asked for
    if not trust_env:
        refuse_unasked(own, policy.path)
    return own
