"""What the commands of ``headway mfg`` write, and read back."""

import csv
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...agents.core.files.budget import Budget
from ...agents.core.files.errors import one_line
from ...agents.core.files.replacing import replacing
from ...agents.core.logging import write_csv
from ...envs.mean_field import History, MFGame, Solution, exploitability, flow, make_game
from ...envs.naming import nearest
from ...envs.schema import array, check_numbers, group, real, whole
from ..machine import origin
from ..runs import write_json

FORMAT = 1
"""Of the files in a folder; a newer one is refused."""

FORMS = {None: "as defined", "openspiel": "as OpenSpiel 2.0.2 computes it"}
"""A game's ``compat``, in words."""

KEYS: dict[Literal["openspiel"] | None, str] = {None: "defined", "openspiel": "openspiel"}
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


def new_folder(asked: Path | None, *default: str) -> Path:
    """Make a folder.

    :param asked: where, which must not exist yet
    :param default: parts of its path in runs/mfg where nothing was asked for, to which the time is added
    :return: the folder
    """
    parent, stamp = Path("runs/mfg", *default), time.strftime("%Y-%m-%d_%H-%M-%S")
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    if asked is not None:
        asked.mkdir(parents=True)
        return asked
    for folder in (parent / name for name in names):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # of a command that began in the same second
            continue
        return folder
    raise FileExistsError(f"{parent} is full of folders of this second: name one by --out")


@contextmanager
def kept_if_done(folder: Path) -> Iterator[None]:
    """Remove a folder that is still empty if the work fails that should have filled it."""
    try:
        yield
    except BaseException:
        folder.rmdir()
        raise


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors, all of it or nothing.

    :param file: .safetensors, where to
    :param tensors: by name, on any device
    :raises OSError: it cannot be written, for the disk is full, say
    """
    try:
        with replacing(file) as temporary:
            temporary.touch()  # with the mode of any other file; the library makes its own for the owner alone
            mode = temporary.stat().st_mode
            save_file({name: part.detach().cpu().contiguous() for name, part in tensors.items()}, temporary)
            temporary.chmod(mode)
    except (SafetensorError, OSError) as cause:  # the library's own error is no OSError
        raise OSError(f"cannot write {file}: {cause}") from cause


def write_solution(folder: Path, about: Mapping[str, Any], solved: Sequence[Solved]) -> None:
    """Write what ``headway mfg solve`` found.

    :param folder: where to
    :param about: game, parameters, algorithm and settings
    :param solved: the forms of the game
    """
    tensors, forms = dict[str, Tensor](), dict[str, Any]()
    for part in solved:
        key, solution = KEYS[part.compat], part.solution
        tensors |= {f"{key}.policy": solution.policy, f"{key}.flow": solution.flow}
        forms[key] = {
            "iterations": solution.history.iterations[-1],
            "exploitability": float(solution.exploitability),
            "seconds": solution.history.seconds[-1],
        }
    save_tensors(folder / "solution.safetensors", tensors)
    rows = [
        [KEYS[part.compat], iteration, repr(float(value)), f"{seconds:.6f}"]
        for part in solved
        for history in [part.solution.history]
        for iteration, value, seconds in zip(history.iterations, history.exploitability, history.seconds, strict=True)
    ]
    write_csv(folder / "exploitability.csv", ["game", "iteration", "exploitability", "seconds"], rows)
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


def load_solution(folder: Path, device: str = "cpu", *, trust_game: bool = False) -> Saved:
    """Read what ``headway mfg solve`` wrote. Nothing in it is executed.

    :param folder: the folder
    :param device: where the game shall be
    :param trust_game: import the module that the game is named with; otherwise it must have been imported
    :return: its manifest, and the solutions, whose policies, flows and last exploitability have been checked against
        the game
    :raises FileNotFoundError: it is no such folder
    :raises ValueError: a file is broken, was edited, or is of a newer version, or the game's module is not imported
    """
    if not (folder / "solution.json").exists():
        raise FileNotFoundError(f"{folder} holds no solution: it has no solution.json")
    with _sound(folder):
        manifest = _read_manifest(folder / "solution.json")
    if not trust_game and (module := not_imported(manifest["game"])) is not None:
        raise ValueError(
            f"{folder} is of the game {manifest['game']}, which would import the module {module}, and a folder does "
            "not decide that: pass --trust-game (trust_game=True) if you trust it, or import the module first"
        )
    with _sound(folder):
        tensors = load_file(folder / "solution.safetensors")
        histories = _read_histories(folder / "exploitability.csv")
        names = [f"{key}.{part}" for key in manifest["forms"] for part in ("policy", "flow")]
        group({name: array((None,) * (4 - (n % 2)), "float64", "float32") for n, name in enumerate(names)})(
            tensors, "solution.safetensors"
        )
        solved = []
        for key in manifest["forms"]:
            compat, policy = _compat(key), tensors[f"{key}.policy"]
            _check_parameters(manifest["parameters"], policy)
            with Budget([policy]):
                game = make_game(manifest["game"], compat, device=device, **manifest["parameters"])
            found = Solution(policy, tensors[f"{key}.flow"], histories[key])
            solved.append(Solved(compat, game, _checked(game, found)))
        return Saved(manifest, solved)


@contextmanager
def _sound(folder: Path) -> Iterator[None]:
    """Tell whatever the content of a folder brings about as an error of that folder."""
    unfit = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
    try:
        yield
    except (*unfit, OSError, SafetensorError, csv.Error) as cause:
        text = " ".join(str(cause).split())
        reason = text if isinstance(cause, (ValueError, OSError)) else f"{type(cause).__name__} {text}"
        raise ValueError(one_line(f"{folder} is broken ({reason}): restore it, or solve the game again")) from cause


def not_imported(game: str) -> str | None:
    """:return: the module that looking a game up by a name from a file would import; None: it is there, or Headway's"""
    module = game.rpartition(":")[0]
    return module if module and module not in sys.modules and module.partition(".")[0] != "headway" else None


def _check_parameters(parameters: Mapping[str, Any], policy: Tensor) -> None:
    """Refuse sizes beyond those of the policy, before a game of such sizes is built."""
    most = max(256, *policy.shape)  # a few parameters are counted in other units; our choice
    for name, value in parameters.items():
        if isinstance(value, float):
            real()(value, f"the parameter {name}")
        elif isinstance(value, int) and not isinstance(value, bool) and name != "seed":
            whole(-most, most)(value, f"the parameter {name}")


_FORM = group({"iterations": whole(), "exploitability": real(), "seconds": real(0)})


def _read_manifest(file: Path) -> dict[str, Any]:
    manifest: Any = json.loads(file.read_text())
    kinds = {"format": int, "game": str, "parameters": dict, "algorithm": str, "forms": dict}
    words = {int: "a number", str: "a text", dict: "an object"}
    if not isinstance(manifest, dict):
        raise ValueError(f"{file.name} must be an object, got {type(manifest).__name__}")
    for name, kind in kinds.items():
        if name not in manifest:
            raise ValueError(f"{file.name} has no {name!r}")
        if not isinstance(manifest[name], kind) or isinstance(manifest[name], bool):
            raise ValueError(f"{name!r} in {file.name} must be {words[kind]}, got {manifest[name]!r}")
        if name == "format" and not 1 <= manifest[name] <= FORMAT:
            raise ValueError(f"it has format {manifest[name]}, this version reads up to {FORMAT}")
    if not manifest["forms"]:
        raise ValueError(f"'forms' in {file.name} names no form of the game")
    for key, form in manifest["forms"].items():
        _compat(key)
        _FORM(form, f"'forms' in {file.name}, {key}")
    return manifest


def _compat(key: str) -> Literal["openspiel"] | None:
    for compat, known in KEYS.items():
        if known == key:
            return compat
    raise ValueError(f"a game has no form {key!r}: {nearest(key, KEYS.values())}")


def _checked(game: MFGame, found: Solution) -> Solution:
    """:return: a solution whose parts go together: the flow and the last exploitability are the policy's."""
    policy, mu = game.check_policy(found.policy), game.check_flow(found.flow)
    if policy.ndim != 4 or mu.ndim != 3:
        raise ValueError(f"it holds a batch of policies {tuple(policy.shape)} or flows {tuple(mu.shape)}, not one")
    exact = game.dtype == torch.float64
    apart = float((flow(game, policy) - mu).abs().max())
    if not apart <= (1e-6 if exact else 1e-3):
        raise ValueError(f"the flow is not the policy's, they are up to {apart:.3g} apart")
    stored, value = float(found.exploitability), float(exploitability(game, policy))
    relative, absolute = (1e-6, 1e-9) if exact else (1e-3, 1e-3)
    if not abs(stored - value) <= relative * abs(value) + absolute:
        raise ValueError(f"the last exploitability is {stored!r}, the policy's is {value!r}")
    history = found.history
    check_numbers(history.exploitability, "exploitability.csv")
    for name, column in (("iteration", history.iterations), ("seconds", history.seconds)):
        if not all(a <= b for a, b in pairwise((0, *column))) or column[-1] == float("inf"):
            raise ValueError(f"exploitability.csv must have a growing {name} in each line")
    return Solution(policy, mu, history)


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
