"""``headway delays``: what a law of delays draws, and how old it lets things get."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..wrappers.delays import age_law, law_table, parse
from .options import Flags, run_flags
from .runs import check_outputs


@dataclass(frozen=True, kw_only=True)
class DelayOptions(Flags):
    """What laws of delays draw, in ticks, and how old the newest packet is that has arrived, if each tick sends one."""

    laws: tyro.conf.Positional[tuple[str, ...]]
    """Laws, such as wifi, constant:2, uniform:0-3, geometric:0.4/6, trace:FILE.csv."""

    plot: Path | None = None
    """Draw them to this file."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a figure that exists."""


def show(options: DelayOptions) -> None:
    """Run ``headway delays``.

    :param options: its arguments
    :raises FileExistsError: the figure would be overwritten
    :raises ValueError: one of the laws is none
    """
    if not options.laws:
        raise ValueError("name at least one law: headway delays wifi uniform:0-3")
    check_outputs(plot=options.plot, overwrite=options.overwrite)
    laws = {text: parse(text) for text in options.laws}
    tables = {text: (law_table(law), age_law(law)) for text, law in laws.items()}
    longest = max(law.max for law in laws.values())
    width = max(map(len, laws))
    print(f"{'':<{width}}         mean  " + "".join(f"{ticks:>7}" for ticks in range(longest + 1)))
    for text, pair in tables.items():
        for what, probs in zip(("delay", "age"), pair, strict=True):
            mean = float((probs * torch.arange(len(probs))).sum())
            cells = "".join(f"{p:>7.3f}" for p in probs.tolist())
            print(f"{text if what == 'delay' else '':<{width}}  {what:<5} {mean:>6.3f}  {cells}")
    if options.plot is not None:
        from .figures import delay_laws  # takes a second to import

        options.plot.parent.mkdir(parents=True, exist_ok=True)
        delay_laws(options.plot, {text: [p.tolist() for p in pair] for text, pair in tables.items()})
        print(f"plot: {options.plot}")


def main(arguments: Sequence[str]) -> int:
    """Run ``headway delays``.

    :param arguments: the command line after "delays"
    :return: exit code
    """
    return run_flags(DelayOptions, arguments, "headway delays", show)
