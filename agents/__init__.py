"""Agents. Each is a Stable-Baselines3 algorithm: ``SAC("MlpPolicy", "HalfCheetah-v5").learn(100_000)``."""

from pathlib import Path
from typing import Any

import torch

from ..envs.naming import nearest
from .abm import ABM, ABMConfig
from .bc import BC, BCConfig
from .core.agent import ActorCriticAgent
from .core.data import DivergedError, NonFiniteError
from .core.data.dataset import Dataset
from .core.data.dataset_files import load_dataset, write_dataset
from .core.files import FileFormatError, read_manifest
from .core.registry import AGENTS
from .dcac import DCAC, DCACConfig
from .dqn import DQN, DQNConfig
from .hdcr import HDCR, HDCRConfig
from .iql import IQL, IQLConfig
from .mbpo import MBPO, MBPOConfig
from .pgps import CEM, PGPS, CEMConfig, PGPSConfig
from .ppo import PPO, PPOConfig
from .sac import SAC, SACConfig
from .td3 import TD3, TD3Config
from .td3_bc import TD3BC, TD3BCConfig
from .tdt import TDT, TDTConfig
from .tpo import TPO, TPOConfig

__all__ = [
    "ABM",
    "AGENTS",
    "BC",
    "CEM",
    "DCAC",
    "DQN",
    "HDCR",
    "IQL",
    "MBPO",
    "PGPS",
    "PPO",
    "SAC",
    "TD3",
    "TD3BC",
    "TDT",
    "TPO",
    "ABMConfig",
    "ActorCriticAgent",
    "BCConfig",
    "CEMConfig",
    "DCACConfig",
    "DQNConfig",
    "Dataset",
    "DivergedError",
    "FileFormatError",
    "HDCRConfig",
    "IQLConfig",
    "MBPOConfig",
    "NonFiniteError",
    "PGPSConfig",
    "PPOConfig",
    "SACConfig",
    "TD3BCConfig",
    "TD3Config",
    "TDTConfig",
    "TPOConfig",
    "load",
    "load_dataset",
    "write_dataset",
]


def load(
    path: str | Path, env: Any = None, device: torch.device | str = "auto", **overrides: Any
) -> ActorCriticAgent[Any]:
    """Load a saved agent of whatever class, if that is Headway's own or has been imported: loading imports nothing.

    :param path: the file
    :param env: environment to go on in; not needed to predict
    :param device: where to load it
    :param overrides: hyper-parameters to change
    :return: the agent
    :raises FileFormatError: (a ``ValueError``) the file is broken, foreign or newer, or its agent is not known here
    """
    with_suffix = Path(f"{path}.zip")
    path = with_suffix if not Path(path).exists() and with_suffix.exists() else path
    name = str(read_manifest(path).get("class"))
    if name not in AGENTS:
        module, colon, cls = name.rpartition(":")
        remedy = (
            f"loading imports nothing by itself; import {module} first, call {cls}.load, or, on the command line, "
            f"pass --agent {name}"
        )
        raise FileFormatError(
            f"{path} holds a {name} agent, which is not known here: {remedy if colon else nearest(name, AGENTS)}"
        )
    agent: ActorCriticAgent[Any] = AGENTS[name].load(path, env, device, **overrides)
    return agent
