"""``headway datasets``: the data sets that are here, what they hold, and what is wrong with them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from ..agents.core.config import Range
from ..agents.core.data import Dataset, DatasetError, load_dataset, write_dataset
from ..agents.core.data.dataset_files import check_new_dataset, datasets_root, episodes_of, find_datasets, read_metadata
from ..agents.core.spaces import shown
from .options import Flags, run_command
from .runs import check_outputs

USAGE = """\
usage: headway datasets COMMAND [--flags]

  list [TEXT]                  data sets that are here, those whose ids contain TEXT
  show NAME                    spaces, returns, reference scores, and where it comes from
  check NAME…                  what is wrong, a line each; exit code 1 if anything is
  plot NAME… --plot FILE       histograms of returns
  take NAME --dataset ID       some of its episodes, drawn at random, as a data set of their own

NAME is an id of Minari's, the folder of a data set, or an .npz file of OGBench's.
"""


def main(arguments: Sequence[str]) -> int:
    """Run ``headway datasets``.

    :param arguments: the command line after "datasets"
    :return: exit code
    :raises ValueError: an unknown command
    """
    return run_command("datasets", COMMANDS, arguments, USAGE)


def _line(returns: Tensor, digits: int = 4) -> str:
    """:return: mean [least, largest]"""
    mean, low, high = float(returns.mean()), float(returns.min()), float(returns.max())
    return f"{mean:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


# -- list ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ListOptions(Flags):
    """List the data sets that are here: id, environment, episodes, steps, return mean [least, largest], size."""

    text: tyro.conf.Positional[str] = ""
    """Only those whose ids contain this."""


def list_datasets(options: ListOptions) -> None:
    """Run ``headway datasets list``.

    :param options: its arguments
    """
    rows = [_row(name, place) for name, place in find_datasets().items() if options.text in name]
    if not rows:
        what = f" whose id contains {options.text!r}" if options.text else ""
        print(f"no data set{what} in {datasets_root()}")
        return
    rows.insert(0, ("id", "environment", "episodes", "steps", "return", "MB"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for number in (2, 3, 5):
            cells[number] = row[number].rjust(widths[number])
        print("  ".join(cells).rstrip())


def _row(name: str, place: Path) -> tuple[str, ...]:
    """:return: what is listed of a data set; of the episodes only rewards are read"""
    folder = place / "data"
    try:
        metadata = read_metadata(folder)
        with episodes_of(folder, metadata) as episodes:
            count = int(metadata["total_episodes"])
            returns = torch.tensor([float(episodes.read(k, "rewards").sum()) for k in range(count)])
        env = metadata.get("env_id") or json.loads(metadata.get("env_spec") or "{}").get("id", "")
        numbers = (f"{count:,}", f"{metadata['total_steps']:,}", _line(returns))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as cause:
        return (name, f"broken: headway datasets check {name}", "", "", type(cause).__name__, "")
    size = sum(file.stat().st_size for file in folder.rglob("*")) / 1e6
    return (name, str(env), *numbers, f"{size:,.1f}")


# -- show ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Flags):
    """Show what a data set holds and where it comes from."""

    name: tyro.conf.Positional[str]
    """Its id, folder or file."""


def show(options: ShowOptions) -> None:
    """Run ``headway datasets show``.

    :param options: its arguments
    """
    data = load_dataset(options.name)
    lengths = data.lengths.double()
    print(f"{data.name}: {data.episodes:,} episodes, {len(data):,} steps")
    rows = {
        "environment": data.env_id or "not said",
        "observations": shown(data.observation_space),
        "actions": shown(data.action_space),
        "lengths": f"{_line(lengths)}; {int(data.terminated.sum()):,} terminated, the others cut",
        "returns": _line(data.returns),
        "scores": _scores(data),
        "extras": ", ".join(f"{name} {tuple(values.shape[1:]) or ''}".strip() for name, values in data.extras.items()),
    }
    for name, text in rows.items():
        print(f"  {name:<13} {text or 'none'}")
    for name, value in data.about.items():
        if name == "env_spec":
            continue  # as long as a page, and its id is above
        print(f"  {name}:" if isinstance(value, dict) else f"  {name:<13} {value}")
        if isinstance(value, dict):
            print("\n".join(f"    {line}" for line in _tree(value)))


def _scores(data: Dataset) -> str:
    low, high = data.ref_min_score, data.ref_max_score
    said = f"0 is a return of {low}, 100 of {high}"
    if low is None or high is None or low == high:
        return "" if low is None and high is None else said
    return f"{_line(data.normalised(data.returns))}, where {said}"


def _tree(value: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            said = (f"{key} {json.dumps(text) if isinstance(text, dict) else text}" for key, text in inner.items())
            lines.append(f"{name}: {', '.join(said)}")
        elif isinstance(inner, list):
            lines += [f"{name}:", *(f"  {json.dumps(one)}" for one in inner)]
        else:
            lines.append(f"{name}: {inner}")
    return lines


# -- check -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Flags):
    """Check data sets: files, lengths, final observations, shapes and dtypes, NaN, ends; a line for each problem."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Ids, folders or files."""


def check(options: CheckOptions) -> int:
    """Run ``headway datasets check``.

    :param options: its arguments
    :return: exit code: 1 if anything is wrong
    :raises ValueError: no name
    """
    if not options.names:
        raise ValueError("which data set? headway datasets list shows those that are here")
    wrong = 0
    for name in options.names:
        try:
            data = load_dataset(name)
        except (DatasetError, FileNotFoundError) as cause:
            wrong = 1
            for problem in getattr(cause, "problems", [cause]):
                print(f"✗ {name}: {problem}")
            continue
        print(f"✓ {name}: {data.episodes:,} episodes, {len(data):,} steps, nothing wrong")
        for note in notes(data):
            print(f"! {name}: {note}")
    return wrong


def notes(data: Dataset) -> list[str]:
    """:return: what is not wrong, but should be known before somebody learns from it"""
    said = []
    if single := int((data.lengths == 1).sum()):
        said.append(f"{single:,} of {data.episodes:,} episodes have one step")
    if float(data.rewards.max() - data.rewards.min()) == 0:
        said.append(f"all rewards are {float(data.rewards[0]):g}: nothing tells good from bad")
    space: Any = data.action_space
    if data.actions.is_floating_point():
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        beyond = ((data.actions < low) | (data.actions > high)).flatten(1).any(1)
        if beyond.any():
            said.append(f"{int(beyond.sum()):,} actions are beyond the bounds of {shown(space)}")
    parts: Mapping[str, Tensor] = data.obs if isinstance(data.obs, dict) else {"": data.obs}
    for key, part in parts.items():
        empty = int((part.flatten(1) == 0).all(1).sum()) if part.dim() > 1 else 0
        if empty:
            said.append(f"{empty:,} observations{f' {key!r}' if key else ''} are all zeros")
    if data.env_id is None:
        said.append("it does not say which environment it is from")
    if data.ref_min_score is None or data.ref_max_score is None:
        said.append("it has no reference scores, so returns cannot be normalised")
    return said


# -- plot ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Flags):
    """Draw histograms of returns, a panel for each environment."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Ids, folders or files."""

    plot: Path
    """File to draw to (.png, .pdf or .svg)."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a figure that exists."""


def plot(options: PlotOptions) -> None:
    """Run ``headway datasets plot``.

    :param options: its arguments
    :raises ValueError: no name
    :raises FileExistsError: the figure would be overwritten
    """
    if not options.names:
        raise ValueError("which data sets? headway datasets list shows those that are here")
    check_outputs(plot=options.plot, overwrite=options.overwrite)
    panels: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for name in options.names:
        data = load_dataset(name, extras=())
        panels.setdefault(data.env_id or "environment not said", {})[data.name] = data.returns.numpy()
    from .figures import return_histograms  # takes a second to import

    options.plot.parent.mkdir(parents=True, exist_ok=True)
    return_histograms(options.plot, panels)
    print(f"plot: {options.plot}")


# -- take ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TakeOptions(Flags):
    """Make a data set of some episodes of another one, drawn at random: to see what less data would do."""

    name: tyro.conf.Positional[str]
    """Its id, folder or file."""

    dataset: str
    """Id of the new one, ns/name-v0. None is overwritten."""

    episodes: Annotated[int, Range(1)] | None = None
    """So many."""

    steps: Annotated[int, Range(1)] | None = None
    """As few episodes as have so many steps."""

    seed: Annotated[int, Range(0)] = 0
    """Of the draw: of one seed, the smaller of two sets is part of the larger."""


def take(options: TakeOptions) -> None:
    """Run ``headway datasets take``.

    :param options: its arguments
    :raises ValueError: not one number of episodes or steps, or more than there are
    """
    if (options.episodes is None) == (options.steps is None):
        raise ValueError("how much? pass --episodes or --steps, and not both")
    data = load_dataset(options.name)
    order = torch.randperm(data.episodes, generator=torch.Generator().manual_seed(options.seed))
    if options.steps is not None:
        most, asked, what = len(data), options.steps, "steps"
        count = int((data.lengths[order].cumsum(0) < asked).sum()) + 1
    else:
        assert options.episodes is not None
        most, asked, what = data.episodes, options.episodes, "episodes"
        count = asked
    if asked > most:
        raise ValueError(f"{data.name} has {most:,} {what}, --{what} asks for {asked:,}")
    chosen = order[:count].sort().values
    about = {**data.about, "taken": {"from": data.name, "seed": options.seed, "episodes": count}}
    part = replace(data.select(chosen), name=options.dataset, about=about)
    check_new_dataset(options.dataset, 0)
    place = write_dataset(part)
    print(f"{part.episodes:,} of {data.episodes:,} episodes, {len(part):,} of {len(data):,} steps, written to {place}")


COMMANDS: dict[str, tuple[type[Any], Any]] = {
    "list": (ListOptions, list_datasets),
    "show": (ShowOptions, show),
    "check": (CheckOptions, check),
    "plot": (PlotOptions, plot),
    "take": (TakeOptions, take),
}
