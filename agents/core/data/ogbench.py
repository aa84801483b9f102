"""OGBench's files (arXiv 2410.20092): one ``.npz`` of all rows, ``terminals`` marking the last of each trajectory.

Their layout, by their own reader (seohongpark/ogbench, ``ogbench/utils.py``): a trajectory of T steps has T + 1 rows,
the last of which is what the last step led to; its action means nothing. Files with ``next_observations`` have T rows.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..files.errors import one_line
from .dataset import Dataset, DatasetError

Array = np.ndarray[Any, Any]

_NAME = re.compile(r"(?P<env>[\w-]+?)-(?P<kind>[a-z]+)-v(?P<version>\d+)(-val)?")


def load_npz(path: Path) -> Dataset:
    """Read a file.

    It says nothing of spaces and often nothing of rewards: bounds are guessed from the numbers, absent rewards are
    zeros, and ``about`` says so. Trajectories end by being cut unless ``masks`` is 0 at their end.

    :param path: the file
    :return: the data set; its environment's id follows from a name such as ``pointmaze-medium-navigate-v0.npz``
    :raises FileNotFoundError: there is none
    :raises DatasetError: (a ``ValueError``) it is no such file, or partial
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: OGBench's are fetched by ogbench.download_datasets")
    try:
        with np.load(path) as file:  # which reads no pickles
            known = ("observations", "actions", "terminals", "rewards", "masks", "next_observations")
            arrays = {name: file[name] for name in known if name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as cause:
        raise DatasetError(str(path), [f"it is no sound .npz file of arrays: {one_line(str(cause))}"]) from cause
    if lacks := [name for name in ("observations", "actions", "terminals") if name not in arrays]:
        raise DatasetError(str(path), [f"it has no {' and no '.join(lacks)}, as OGBench's files do"])
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1 or not rows["terminals"]:
        raise DatasetError(str(path), [f"it is empty or partial: its arrays have the lengths {rows}"])
    return _dataset(path, arrays)


def _dataset(path: Path, arrays: Mapping[str, Array]) -> Dataset:
    ends = arrays["terminals"].astype(bool).reshape(-1)
    if not ends[-1]:
        raise DatasetError(str(path), ["it is partial: its last row is not the end of a trajectory"])
    last = ends.nonzero()[0]  # (E,)
    explicit = "next_observations" in arrays
    steps = np.ones_like(ends) if explicit else ~ends
    lengths = np.diff(last, prepend=-1) - (0 if explicit else 1)
    if (lengths < 1).any():
        raise DatasetError(str(path), [f"episode {int((lengths < 1).argmax())} has no steps"])
    seen = arrays["observations"]
    actions = arrays["actions"][steps]
    actions = actions if actions.dtype.kind == "f" else actions.astype(np.int64)
    bound = 1.0 if np.abs(actions).max() <= 1 else np.inf  # that of all its environments
    rewards = arrays.get("rewards")
    masks = arrays.get("masks")
    final_row = last if explicit else last - 1  # of each episode's last step
    match = _NAME.fullmatch(path.stem)
    guessed = "spaces" if rewards is not None else "spaces, rewards (zeros)"
    return Dataset(
        observation_space=_numbers(seen, np.inf),
        action_space=_choices(actions) if actions.dtype.kind == "i" else _numbers(actions, bound),
        obs=_tensor(seen[steps]),
        final_obs=_tensor(arrays["next_observations"][last] if explicit else seen[last]),
        actions=_tensor(actions),
        rewards=torch.zeros(int(steps.sum()), dtype=torch.float64)
        if rewards is None
        else _tensor(rewards[steps]).double(),
        lengths=torch.from_numpy(lengths),
        terminated=torch.zeros(len(last), dtype=torch.bool) if masks is None else _tensor(masks[final_row] == 0),
        name=str(path),
        env_id=f"{match['env']}-v{match['version']}" if match else None,
        about={"format": "OGBench npz", "guessed": guessed},
    )


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _numbers(array: Array, bound: float) -> spaces.Box:
    if array.dtype == np.uint8:
        return spaces.Box(0, 255, array.shape[1:], np.uint8)
    return spaces.Box(-bound, bound, array.shape[1:], array.dtype.type)


def _choices(array: Array) -> spaces.Space[Any]:
    highest = array.max(0) + 1
    return spaces.Discrete(int(highest)) if array.ndim == 1 else spaces.MultiDiscrete(highest)
