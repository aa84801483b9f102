"""Mean field environments by id: ``MeanFieldPopulation-v0``, ``MeanFieldAgent-v0`` and ``NAgentMFG-v0``."""

from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from ..vector import face
from .game import MFGame
from .member import MeanFieldAgentBatch, MemberVectorEnv
from .population import MeanFieldPopulationBatch

BATCHED_ENTRY_POINTS = {f"{__name__}:make_population_vector", f"{__name__}:make_member_vector"}
"""What :func:`headway.envs.make_batched` can make."""


def make_population_vector(
    num_envs: int, device: torch.device | str | None = None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """:return: what ``gymnasium.make_vec`` does, see :func:`~headway.envs.vector.face`"""
    return face(MeanFieldPopulationBatch, num_envs, device, **options)


def make_member_vector(
    num_envs: int, game: str | MFGame = "crowd_modelling", device: torch.device | str | None = None, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """Make what ``gymnasium.make_vec`` returns: NumPy arrays, rewards in float64; tensors given a device.

    :param num_envs: N
    :param game: a game, or its name
    :param device: where the tensors are; None: arrays
    :param options: as for :class:`MeanFieldAgentBatch`
    :return: the vector environment
    """
    if device is not None:
        return MeanFieldAgentBatch(num_envs, game, device=device, **options)
    return MemberVectorEnv(MeanFieldAgentBatch(num_envs, game, **{"dtype": torch.float64, **options}))


def register_all() -> None:
    """Register the ids; importing ``headway.envs`` has done it."""
    here = __package__
    for name, entry, vector in (
        ("MeanFieldPopulation", "population:MeanFieldPopulationEnv", "make_population_vector"),
        ("MeanFieldAgent", "member:MeanFieldAgentEnv", "make_member_vector"),
    ):
        gym.register(f"headway/{name}-v0", entry_point=f"{here}.{entry}", vector_entry_point=f"{__name__}:{vector}")
    gym.register("headway/NAgentMFG-v0", entry_point=f"{here}.n_agents:NAgentEnv")
