"""``headway mfg learn``: deep solvers, watched exactly."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ...agents.core.config import Config, Range, describe
from ...envs.mean_field import GAMES, MFGame
from ...envs.schema import by_name, each, group, text, whole
from ..machine import origin
from ..options import early_flags, parse_flags
from ..runs import alone, write_json
from .files import FORMAT, new_folder, not_imported
from .games import SolverFlags, device_of, flat, make_form, parse_pairs, parse_value, split_pairs
from .learners import ALGORITHMS
from .study import Plan, Study, report


@dataclass(frozen=True, kw_only=True)
class Options(SolverFlags):
    """Solve games with a deep solver, once per seed; compute exploitability exactly after every iteration."""

    games: tyro.conf.Positional[tuple[str, ...]] = ()
    """Games (`headway mfg games` lists them)."""

    algorithm: Literal["deep_mirror_descent", "average_fictitious_play", "deep_fictitious_play", "ppo"] = (
        "deep_mirror_descent"
    )
    """Mirror descent on networks (D-MOMD); fictitious play with deep Q-networks and an average network (D-AFP), or with
    the average computed exactly; fictitious play with Stable-Baselines3's PPO."""

    iterations: Annotated[int, Range(1)] = 50
    """Of each run."""

    seeds: Annotated[tuple[int, ...], Range(0, 2**31 - 1)] = (0,)
    """One run each."""

    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Settings of the algorithm, FIELD=VALUE, such as temperature=20 net_arch=[64,64]; `--set help` lists them."""

    timesteps: Annotated[int | None, Range(1, unit="environment steps")] = None
    """Of ppo, per iteration and population; 20,000 by default."""

    param: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Parameters of the games, KEY=VALUE, such as size=20 horizon=15."""

    compat: Literal["openspiel", "none"] = "none"
    """none: games as they are defined; openspiel: as OpenSpiel 2.0.2 computes them."""

    exact: bool = True
    """For comparison, run the exact algorithm that the deep one approximates: mirror descent with a learning rate of
    1 / temperature, or fictitious play."""

    out: Path | None = None
    """Folder to write, which must not exist yet; by default runs/mfg/learn/<time>."""

    resume: Path | None = None
    """Folder to go on with: flags not given are its own, finished runs are kept, others start again; --seeds may add
    runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.games and not self.asks_for_help:
            raise ValueError(f"name at least one game: {', '.join(sorted(GAMES))}")
        if not self.seeds:
            raise ValueError("--seeds: name at least one")
        for name in ("games", "seeds"):
            if len(values := getattr(self, name)) != len({*values}):
                raise ValueError(f"{name} {' '.join(map(str, values))}: one is named twice")
        if self.resume is not None and self.out not in (None, self.resume):
            raise ValueError(f"--out {self.out}: a command that goes on with {self.resume} writes there")

    @property
    def asks_for_help(self) -> bool:
        """Whether settings are to be listed."""
        return any("help" in group for group in self.set)


MAY_CHANGE = ("seeds", "out", "resume", "device", "progress")
"""Flags that leave a resumed folder's runs what they were."""


def main(arguments: Sequence[str]) -> int:
    """Run ``headway mfg learn``.

    :param arguments: the command line after "learn"
    :return: exit code: 0 when all runs are finished, 1 when one failed, 130 after Ctrl-C
    :raises ValueError: an unknown name or setting, a value out of range, another command's folder
    :raises FileExistsError: the folder exists
    """
    saved = _saved(arguments)
    _refuse_unasked(saved, arguments)
    options = parse_flags(Options, arguments, "headway mfg learn", default=saved and replace(saved, set=(), param=()))
    if options is None:
        return 0
    if options.asks_for_help:
        _list_settings(options.algorithm)
        return 0
    if saved is not None:
        options = replace(options, set=options.set or saved.set, param=options.param or saved.param)
        _check_same(options, saved)
    return _run(options)


def _saved(arguments: Sequence[str]) -> Options | None:
    """:return: the flags of the folder that ``--resume`` names; None without one."""
    folder = early_flags(arguments, "resume").get("resume")
    if folder is None:
        return None
    file = Path(folder) / "learn.json"
    if not file.exists():
        raise FileNotFoundError(f"--resume {file.parent}: headway mfg learn has not written it, it has no learn.json")
    try:
        content = json.loads(file.read_text())
        group({"format": whole(1), "flags": by_name(lambda *_: None)}, others=True)(content, "it")
        if content["format"] > FORMAT:
            raise ValueError(f"it has format {content['format']}, this version reads up to {FORMAT}")
        flags = content["flags"]
        for name in ("set", "param"):
            each(text())(flags[name], f"the flag {name}")
            flags[name] = (tuple(flags[name]),) if flags[name] else ()
        each(text())(flags["games"], "the games")
        lists = {name: tuple(flags[name]) for name in ("games", "seeds")}
        return Options(**{**flags, **lists, "resume": file.parent})
    except (ValueError, TypeError, KeyError, RecursionError) as cause:
        raise ValueError(f"{file} is broken ({cause}): restore it, or start anew with another --out") from cause


def _refuse_unasked(saved: Options | None, arguments: Sequence[str]) -> None:
    """Refuse to import what a folder names, unless the command line names it too."""
    if saved is None:
        return
    for game in saved.games:
        if (module := not_imported(game)) is not None and game not in arguments:
            raise ValueError(
                f"--resume {saved.resume}: its game {game} would import the module {module}, and a folder does not "
                f"decide that: if you trust it, name its games again, headway mfg learn {' '.join(saved.games)} …"
            )


def _check_same(options: Options, saved: Options) -> None:
    for field in fields(Options):
        before, now = getattr(saved, field.name), getattr(options, field.name)
        if field.name in ("set", "param"):
            before, now = sorted(flat(before)), sorted(flat(now))
        if field.name not in MAY_CHANGE and before != now:
            raise ValueError(
                f"--{field.name} is {_shown(before)} in {saved.resume} and cannot become {_shown(now)}: "
                "leave the flag out, or start anew without --resume"
            )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "not given" if isinstance(value, list | tuple) else str(value)


# -- Settings --------------------------------------------------------------------------------------------------------


def _list_settings(algorithm: str) -> None:
    for info in describe(ALGORITHMS[algorithm].config).values():
        print(f"  {info.name}={json.dumps(info.default)}: {info.help}")


def read_settings(options: Options) -> Config:
    """Read an algorithm's settings.

    :param options: the command's flags
    :return: the settings
    :raises ValueError: no pair, given twice, out of range, or of another algorithm
    :raises TypeError: an unknown field (the nearest is named), or a value of the wrong type
    """
    pairs = split_pairs("--set", flat(options.set), "FIELD=VALUE")
    given = {key: parse_value(text) for key, text in pairs.items()}
    if options.timesteps is not None:
        if options.algorithm != "ppo":
            raise ValueError(f"--timesteps goes with --algorithm ppo; {options.algorithm} has --set episodes=N")
        if "timesteps" in given:
            raise ValueError("--timesteps is given twice, once by --set")
        given["timesteps"] = options.timesteps
    return ALGORITHMS[options.algorithm].config.from_dict(given)


def _make_games(options: Options) -> dict[str, MFGame]:
    device = device_of(options.device)
    pairs = flat(options.param)
    return {name: make_form(name, options.compat, device, **parse_pairs(pairs, name)) for name in options.games}


def _run(options: Options) -> int:
    config, games = read_settings(options), _make_games(options)
    for game in games.values():  # so that what will not do is said before another game has been learnt for hours
        ALGORITHMS[options.algorithm].solve(game, config, iterations=0, seed=options.seeds[0])
    common = {name: getattr(options, name) for name in ("algorithm", "seeds", "iterations", "exact", "progress")}
    folder = options.resume or new_folder(options.out, "learn")
    with alone(folder, "learning", "choose another folder"):
        _write_manifest(folder, options, config)
        study = Study(folder, Plan(config=config, games=games, **common))
        interrupted = False
        try:
            study.run()
        except KeyboardInterrupt:
            interrupted = True
        report(study)
    print(f"written: {folder}")
    if study.failed:
        print(f"{study.failed} of {len(games) * len(options.seeds)} runs failed")
    if interrupted:
        _say_how_to_go_on(study)
    return 130 if interrupted else int(study.failed > 0)


def _write_manifest(folder: Path, options: Options, config: Config) -> None:
    names = ("games", "algorithm", "iterations", "seeds", "timesteps", "compat", "exact", "device")
    flags: dict[str, Any] = {name: getattr(options, name) for name in names}
    flags |= {"set": flat(options.set), "param": flat(options.param)}
    file = folder / "learn.json"
    if file.exists():
        known = json.loads(file.read_text())
        known["flags"]["seeds"] = [*dict.fromkeys([*known["flags"]["seeds"], *options.seeds])]
        known["resumed"] = [*known.get("resumed", []), origin()]
        write_json(file, known)
    else:
        write_json(file, {"format": FORMAT, "flags": flags, "config": config.to_dict(), **origin()})


def _say_how_to_go_on(study: Study) -> None:
    runs = [(game, seed) for game in study.plan.games for seed in study.plan.seeds]
    done = sum(study.finished(*run) for run in runs)
    print(f"interrupted: {done} of {len(runs)} runs are finished; the one that was cut off starts again")
    print(f"go on with: headway mfg learn --resume {shlex.quote(str(study.folder))}")
