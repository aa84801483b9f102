"""Runs by what they are runs of: environment, delays, agent, and settings where these differ."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import Curve, read_columns
from .options import EXECUTION, TrainOptions
from .runs import read_run


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Find run folders.

    :param folders: run folders, or folders that hold some at any depth
    :return: the run folders, each once
    :raises FileNotFoundError: one of them is none and holds none
    """
    found: dict[Path, None] = {}
    for folder in folders:
        configs = [folder / "config.json"] if (folder / "config.json").exists() else sorted(folder.rglob("config.json"))
        if not configs:
            raise FileNotFoundError(f"{folder} is no run folder and holds none: a run has a config.json")
        found |= dict.fromkeys(config.parent for config in configs)
    return list(found)


ALIKE = {"env", "seed", "env_device", "preset", "config", "run_dir", "resume", *EXECUTION}
ALIKE |= {"log_every", "checkpoint_every", "eval_every", "eval_episodes"}
"""Options in which runs may differ and still be of one group."""


def place_of(options: Mapping[str, Any]) -> str:
    """:return: the environment of a run; returns behind other delays are those of another one"""
    env, delay = str(options["env"]).rpartition(":")[2], options["delay"]
    return env if delay is None else f"{env} behind {delay}"


def grouped(runs: Sequence[Path]) -> dict[str, dict[str, list[Curve]]]:
    """Sort runs by environment, its delays included, and agent, and by settings where these differ.

    :param runs: run folders
    :return: their curves by environment and label; runs without an evaluation are left out
    :raises ValueError: no run has been evaluated
    """
    curves: dict[Path, Curve] = {}
    for folder in runs:
        steps, returns = read_columns(folder / "evaluations.csv", "step", "mean")
        if len(steps):
            curves[folder] = steps, returns
    if not curves:
        raise ValueError("none of these runs has been evaluated yet")
    panels = sort_runs(list(curves))
    return {
        env: {label: [curves[folder] for folder in folders] for label, folders in groups.items()}
        for env, groups in panels.items()
    }


def sort_runs(runs: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Sort runs as :func:`grouped` does.

    :param runs: run folders
    :return: the folders, by environment and label
    """
    kinds: dict[tuple[str, str], list[tuple[dict[str, str], Path]]] = {}
    for folder in runs:
        content = read_run(folder)
        options = {**vars(TrainOptions()), **content["options"]}  # a run of former times may lack some
        settings = {k: v for k, v in {**options, **content["config"]}.items() if k not in ALIKE}
        kind = (place_of(options), content["agent"])
        kinds.setdefault(kind, []).append(({k: json.dumps(v) for k, v in settings.items()}, folder))
    panels: dict[str, dict[str, list[Path]]] = {}
    for (env, agent), members in kinds.items():
        names = dict.fromkeys(name for settings, _ in members for name in settings)
        differing = [name for name in names if len({settings.get(name) for settings, _ in members}) > 1]
        for settings, folder in members:
            label = " ".join([agent, *(f"{name}={settings.get(name)}" for name in differing)])
            panels.setdefault(env, {}).setdefault(label, []).append(folder)
    return panels
