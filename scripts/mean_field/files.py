"""What the commands of ``headway mfg`` write, and read back."""

import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...agents.core.files import versions
from ...envs.mean_field import History, MFGame, Solution, make_game
from ..machine import machine

FORMAT = 1
"""Of the files in a folder; a newer one is refused."""

FORMS = {None: "as defined", "openspiel": "as OpenSpiel 2.0.2 computes it"}
"""A game's ``compat``, in words."""

KEYS = {None: "defined", "openspiel": "openspiel"}
"""A game's ``compat``, in files."""


@dataclass(frozen=True)
class Solved:
    """One form of a game, solved.

    :param compat: which form
    :param game: the game
    :param solution: what was found
    """

    compat: Literal["openspiel"] | None
    game: MFGame
    solution: Solution


def as_folder(game: str) -> str:
    """:return: a game's name as that of a folder."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in game)


def new_folder(parent: Path) -> Path:
    """:return: a folder named by the time, that does not exist yet."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    return next(parent / name for name in names if not (parent / name).exists())


def origin() -> dict[str, Any]:
    """:return: by what a file was made: machine, versions and command line."""
    command = " ".join(["headway", *sys.argv[1:]])
    return {"machine": machine(), "versions": versions(), "command": command}


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON.

    :param file: where to
    :param content: what
    """
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_solution(folder: Path, about: Mapping[str, Any], solved: Sequence[Solved]) -> None:
    """Write what ``headway mfg solve`` found.

    :param folder: where to
    :param about: game, parameters, algorithm and settings
    :param solved: the forms of the game
    """
    tensors, forms = dict[str, Tensor](), dict[str, Any]()
    for part in solved:
        key, solution = KEYS[part.compat], part.solution
        tensors |= {f"{key}.policy": solution.policy.cpu(), f"{key}.flow": solution.flow.cpu()}
        forms[key] = {
            "iterations": solution.history.iterations[-1],
            "exploitability": float(solution.exploitability),
            "seconds": solution.history.seconds[-1],
        }
    save_file(tensors, folder / "solution.safetensors")
    rows = [
        [KEYS[part.compat], iteration, repr(float(value)), f"{seconds:.6f}"]
        for part in solved
        for history in [part.solution.history]
        for iteration, value, seconds in zip(history.iterations, history.exploitability, history.seconds, strict=True)
    ]
    with (folder / "exploitability.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["game", "iteration", "exploitability", "seconds"], *rows])
    game = solved[0].game
    sizes = {"S": game.S, "A": game.A, "H": game.H, "n_pop": game.n_pop}
    found = {"sizes": sizes, "forms": forms, "device": str(game.device)}
    write_json(folder / "solution.json", {"format": FORMAT, **about, **found, **origin()})


@dataclass(frozen=True)
class Saved:
    """What a folder holds.

    :param manifest: of ``solution.json``
    :param solved: the forms of the game, in the order in which they were solved
    """

    manifest: dict[str, Any]
    solved: list[Solved]


def load_solution(folder: Path, device: str = "cpu") -> Saved:
    """Read what ``headway mfg solve`` wrote. Nothing in it is executed.

    :param folder: the folder
    :param device: where the game shall be
    :return: its manifest, and the solutions, whose policies and flows have been checked against the game
    :raises FileNotFoundError: it is no such folder
    :raises ValueError: a file is broken, was edited, or is of a newer version
    """
    if not (folder / "solution.json").exists():
        raise FileNotFoundError(f"{folder} holds no solution: it has no solution.json")
    try:
        manifest: dict[str, Any] = json.loads((folder / "solution.json").read_text())
        if manifest["format"] > FORMAT:
            raise ValueError(f"it has format {manifest['format']}, this version reads up to {FORMAT}")
        tensors = load_file(folder / "solution.safetensors")
        histories = _read_histories(folder / "exploitability.csv")
        solved = []
        for key in manifest["forms"]:
            compat = next(compat for compat, known in KEYS.items() if known == key)
            game = make_game(manifest["game"], compat, device=device, **manifest["parameters"])  # type: ignore[arg-type]
            policy = game.check_policy(tensors[f"{key}.policy"])
            flow = game.check_flow(tensors[f"{key}.flow"])
            solved.append(Solved(compat, game, Solution(policy, flow, histories[key])))  # type: ignore[arg-type]
        return Saved(manifest, solved)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, OSError, SafetensorError) as cause:
        reason = f"{type(cause).__name__} {cause}" if isinstance(cause, KeyError) else str(cause)
        raise ValueError(f"{folder} is broken ({reason}): restore it, or solve the game again") from cause


def _read_histories(file: Path) -> dict[str, History]:
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = {}
    for key in dict.fromkeys(row["game"] for row in rows):
        own = [row for row in rows if row["game"] == key]
        values = torch.tensor([float(row["exploitability"]) for row in own], dtype=torch.float64)
        iterations = tuple(int(row["iteration"]) for row in own)
        found[key] = History(iterations, values, tuple(float(row["seconds"]) for row in own))
    return found
