"""``headway mfg fit``: recover a crowd's reward from how it moved, and compare its forecasts with baselines."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import torch
import tyro

from ...agents.core.config import Range, fits
from ...agents.mean_field.inverse import METHODS, MCEFit, fit, recovery
from ...agents.mean_field.inverse.crowd_models import CrowdModel, Fit, Scores
from ...agents.mean_field.inverse.forecasts import RNN, VAR, MeanCrowd, Persistence, PooledMoves
from ...envs.mean_field.cohorts import COHORTS, Trajectories, load_cohorts, synthetic
from ...envs.naming import nearest
from ..machine import origin
from ..options import Flags
from ..runs import write_json
from .files import kept_if_done, new_folder, save_tensors
from .games import flat, parse_value, split_pairs

BASELINES: dict[str, Callable[[Trajectories], CrowdModel]] = {
    "persistence": Persistence,
    "mean": MeanCrowd,
    "moves": PooledMoves,
    "moves-by-time": lambda data: PooledMoves(data, by_time=True),
    "var": VAR,
    "rnn": RNN,
}
"""Forecasts without a reward, by name."""

Baseline = Literal["persistence", "mean", "moves", "moves-by-time", "var", "rnn"]

FITTED = 21 / 27
"""Share of crowds that are fitted by default: 21 of 27 days in arXiv 1711.03156."""


@dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Recover a crowd's reward from how it moved; compare forecasts of other crowds with those of baselines."""

    data: tyro.conf.Positional[str]
    """biofam or mvad (real crowds, from the package sequenzo), synthetic (with a planted reward), or a file FILE.npz of
    counts (n, N, d, d): people by crowd, time and move; pi (n, N + 1, d), labels and names may be in it too."""

    model: str = "auto"
    """Terms of a linear reward joined by commas (u, drift, stay, popularity, log_congestion, linear_congestion), mlp,
    or network; auto takes the terms that were planted, and else u,drift."""

    method: str = "mce_individual"
    """mce_individual (maximum causal entropy) or gcl_population (guided cost learning, arXiv 1711.03156)."""

    param: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Parameters of the method, KEY=VALUE, such as tau=0.5 l2=0.001 flow=model. By default, tau is the planted one, and
    the terminal value is learned where nothing was planted."""

    data_param: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Parameters of the data, KEY=VALUE, such as days=8 people=2000 (synthetic) or groups=10 (biofam)."""

    train: Annotated[int, Range(0)] = 0
    """Crowds that are fitted, the first ones; the others test. 0: 21 of 27."""

    baselines: tuple[Baseline, ...] = ("persistence", "mean", "moves", "moves-by-time", "var", "rnn")
    """Forecasts to compare with: crowds that stay as they are, the mean of those fitted, their pooled moves, their
    moves at each time, a vector autoregression of order 1, a recurrent network."""

    out: Path | None = None
    """Folder to write, which must not exist yet; by default runs/mfg/fit/<data>/<time>."""

    seed: Annotated[int, Range(0)] = 0
    """Of sampled crowds and of fits."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"--method {self.method}: {nearest(self.method, METHODS)}")


def run(options: Options) -> None:
    """Run ``headway mfg fit``.

    :param options: its arguments
    :raises ValueError: data that are none, an unknown name, a value out of range
    :raises FileExistsError: the folder exists
    """
    crowds = read_crowds(options.data, _pairs("--data-param", options.data_param), options.seed)
    fitted, tested = crowds.split(options.train or max(1, min(len(crowds) - 1, round(FITTED * len(crowds)))))
    model, config = _defaults(options, crowds)
    folder = new_folder(options.out, "fit", Path(options.data).stem)
    try:
        with kept_if_done(folder):
            found = fit(fitted, model, options.method, progress=options.progress, **config)
            models: dict[str, CrowdModel] = {"reward": found}
            models |= {name: BASELINES[name](fitted) for name in options.baselines}
            scores = {name: (model.score(fitted), model.score(tested)) for name, model in models.items()}
    except RuntimeError as cause:
        raise ValueError(str(cause)) from cause
    print(
        f"{options.data}: {crowds.d} states, {crowds.horizon} moves; {len(fitted)} crowds fitted, {len(tested)} to test"
    )
    _print_fit(found, model, options.method)
    _print_scores(scores)
    _write_fit(folder, options, model, config, found, scores)
    print(f"\nwritten: {folder}")
    _draw(folder, options.data, found, fitted, tested, models, scores)


# -- Data ------------------------------------------------------------------------------------------------------------


def read_crowds(data: str, parameters: Mapping[str, Any], seed: int = 0) -> Trajectories:
    """Read or sample crowds.

    :param data: "biofam", "mvad", "synthetic", or a file
    :param parameters: of the data
    :param seed: of sampled ones
    :return: the crowds
    :raises ValueError: no such data; a file or parameter that does not fit
    """
    if data.endswith(".npz"):
        if parameters:
            raise ValueError(f"--data-param: a file takes no parameters, got {', '.join(parameters)}")
        return read_counts(Path(data))
    known = [*COHORTS, "synthetic"]
    if data not in known:
        raise ValueError(f"there are no data {data!r}: {nearest(data, known)}; a file of counts ends in .npz")
    _check_parameters(data, parameters)
    try:
        return synthetic(**{"seed": seed, **parameters}) if data == "synthetic" else load_cohorts(data, **parameters)
    except ModuleNotFoundError as cause:
        raise ValueError(str(cause)) from cause
    except OverflowError as cause:
        raise ValueError(f"--data-param: a number is too large: {cause}") from cause


def _check_parameters(data: str, parameters: Mapping[str, Any]) -> None:
    hints = get_type_hints(synthetic if data == "synthetic" else COHORTS[data])
    hints.pop("return", None)
    for key, value in parameters.items():
        if key not in hints:
            raise ValueError(f"--data-param: {data} has no parameter {key!r}: {nearest(key, hints)}")
        kind, least = hints[key], 0 if key == "seed" else 1
        if value is None and fits(None, kind):
            continue
        if kind is float:
            if not fits(value, float) or not np.isfinite(value):
                raise ValueError(f"--data-param {key} must be a finite number, got {value}")
        elif not fits(value, int) or value < least:
            raise ValueError(f"--data-param {key} must be a whole number of at least {least}, got {value}")


def read_counts(file: Path) -> Trajectories:
    """Read crowds from arrays. Nothing in the file is executed.

    :param file: .npz with ``counts`` (n, N, d, d), or (N, d, d) for one crowd; ``pi`` (n, N + 1, d), by default what
        counts say; ``labels`` (d,) and ``names`` (n,)
    :return: the crowds
    :raises FileNotFoundError: there is no such file
    :raises ValueError: it is something else, or its arrays do not fit
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    parts = _read_arrays(file)
    counts = _numbers(file, "counts", "(n, N, d, d)", parts["counts"])
    if counts.shape[2] != counts.shape[3] or not counts.size:
        raise ValueError(f"{file}: counts must be numbers (n, N, d, d), each at least 1, got {counts.shape}")
    if (wrong := ~np.isfinite(counts) | (counts < 0)).any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{file}: counts must be finite and at least 0, got {counts[where]} at {where}")
    if "pi" in parts:
        pi = _numbers(file, "pi", "(n, N + 1, d)", parts["pi"])
    else:
        present = np.concatenate([counts.sum(3), counts[:, -1:].sum(2)], 1)
        pi = present / np.maximum(present.sum(-1, keepdims=True), np.finfo(float).tiny)
    texts: dict[str, Any] = {name: _texts(file, name, parts[name]) for name in ("labels", "names") if name in parts}
    try:
        return Trajectories(torch.from_numpy(pi), torch.from_numpy(counts), **texts)
    except ValueError as cause:
        raise ValueError(f"{file}: {cause}") from cause


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """:return: those of a file's arrays that are read, counts among them."""
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} cannot be read as arrays: it is no .npz archive (a text, or a renamed .npy?); "
            "write it by numpy.savez(file, counts=...)"
        )
    name, parts = "its list", dict[str, np.ndarray]()
    try:
        with np.load(file, allow_pickle=False) as arrays:
            held = list(arrays.files)
            for name in ("counts", "pi", "labels", "names"):
                if name in held:
                    parts[name] = np.asarray(arrays[name])
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as cause:
        reason = "it holds Python objects (allow_pickle=False)" if "Object arrays" in str(cause) else str(cause)
        wanted = "texts" if name in ("labels", "names") else "numbers"
        raise ValueError(f"{file}: {name} cannot be read: {reason}; it must be an array of {wanted}") from cause
    if "counts" not in parts:
        raise ValueError(f"{file} has no array 'counts' (n, N, d, d); it has {', '.join(held) or 'none'}")
    return parts


def _numbers(file: Path, name: str, axes: str, part: np.ndarray) -> np.ndarray:
    """:return: an array with one axis for crowds, of real numbers."""
    ndim = 4 if name == "counts" else 3
    part = part[None] if part.ndim == ndim - 1 else part
    if part.ndim != ndim or part.dtype.kind not in "iuf":
        raise ValueError(f"{file}: {name} must be numbers {axes}, got {part.shape} of {part.dtype}")
    return part.astype(float)


def _texts(file: Path, name: str, part: np.ndarray) -> tuple[str, ...]:
    if part.ndim != 1 or part.dtype.kind != "U":
        raise ValueError(f"{file}: {name} must be a list of texts, got {part.shape} of {part.dtype}")
    return tuple(map(str, part))


def _pairs(flag: str, groups: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    return {key: parse_value(text) for key, text in split_pairs(flag, flat(groups)).items()}


def _defaults(options: Options, crowds: Trajectories) -> tuple[str, dict[str, Any]]:
    """:return: the model and the method's configuration, as given or as the data suggest."""
    given = _pairs("--param", options.param)
    planted = dict(crowds.planted.parameters) if crowds.planted is not None else {}
    tau = planted.pop("tau", None)
    model = options.model
    if model == "auto":
        terms = [name for name, value in planted.items() if value != 0]
        model = ",".join(terms) or "u,drift"
        model = model if options.method == "mce_individual" else "network"
    suggested: dict[str, Any] = {"seed": options.seed}
    if options.method == "mce_individual":
        suggested |= {"tau": tau} if tau is not None else {"terminal": "learned"}
    return model, suggested | given


# -- What is said and written ----------------------------------------------------------------------------------------


def _print_fit(found: Fit, model: str, method: str) -> None:
    print(f"{method}, reward {model}", end="")
    if isinstance(found, MCEFit):
        end = "converged" if found.converged else f"stopped: {found.message}"
        print(f": loss {found.loss:.6f} nats per move after {found.iterations} iterations, {end}", end="")
    print()


def _print_scores(scores: Mapping[str, tuple[Scores, Scores]]) -> None:
    width = max(map(len, scores))
    print(f"\n{'JSD, nats':<{width}}  {'fitted: final':>14} {'mean':>8}  {'test: final':>14} {'mean':>8}")
    for name, pair in scores.items():
        cells = [f"{part.jsd_final:>14.4f} {part.jsd_mean:>8.4f}" for part in pair]
        print(f"{name:<{width}}  {'  '.join(cells)}")


def _write_fit(
    folder: Path,
    options: Options,
    model: str,
    config: Mapping[str, Any],
    found: Fit,
    scores: Mapping[str, tuple[Scores, Scores]],
) -> None:
    save_tensors(folder / "fit.safetensors", found.parameters)
    manifest = {
        "format": 1,
        "data": options.data,
        "data_parameters": _pairs("--data-param", options.data_param),
        "method": options.method,
        "model": model,
        "config": dict(config),
        "scores": {name: {"fitted": asdict(pair[0]), "test": asdict(pair[1])} for name, pair in scores.items()},
        **origin(),
    }
    write_json(folder / "fit.json", manifest)


def _draw(
    folder: Path,
    data: str,
    found: Fit,
    fitted: Trajectories,
    tested: Trajectories,
    models: Mapping[str, CrowdModel],
    scores: Mapping[str, tuple[Scores, Scores]],
) -> None:
    from .draw_fits import forecast_errors, forecasts, recovered_against_planted, reward_map

    errors = {name: (pair[1].jsd_final, pair[1].jsd_mean) for name, pair in scores.items()}
    tests = "1 crowd that was" if len(tested) == 1 else f"{len(tested)} crowds that were"
    forecast_errors(folder / "errors.png", f"{data}: forecasts of {tests} not fitted", errors)
    observed = tested.pi.mean(0).cpu().numpy()
    lines = {name: models[name].predict(tested.pi[:, 0]).mean(0).cpu().numpy() for name in models}
    shown = "shares of the test crowd" if len(tested) == 1 else f"shares, mean of {len(tested)} test crowds"
    forecasts(folder / "forecasts.png", f"{data}: {shown}", observed, lines, tested.labels)
    parameters = found.parameters
    if "u" in parameters:
        drift = parameters.get("drift")
        seen = (fitted.counts.sum((0, 1)) > 0).cpu().numpy()
        middle = parameters["u"] if drift is None else parameters["u"] + drift / 2
        u = middle.cpu().numpy()
        when = "" if drift is None else ", halfway"
        reward_map(folder / "reward.png", f"{data}: reward of a move{when}", u, seen, fitted.labels)
    if fitted.planted is not None:
        compared = recovery(found, fitted)
        print("\nplanted and recovered")
        for name, (value, truth) in compared.parameters.items():
            print(f"  {name:<18} planted {truth:.4f}, recovered {value:.4f}")
        print(f"  KL(planted | recovered) of choices {compared.kl:.4g} nats; ", end="")
        print(f"JSD of forecasts {compared.jsd_final:.4g} final, {compared.jsd_mean:.4g} mean")
        if compared.exploitability is not None:
            print(f"  exploitability of recovered choices in the planted games: {compared.exploitability:.4g}")
        planted, recovered = _pairs_to_draw(found, fitted)
        recovered_against_planted(folder / "recovered.png", f"{data}: recovered against planted", planted, recovered)


def _pairs_to_draw(found: Fit, crowds: Trajectories) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """:return: planted and recovered: parameters and rewards, or choices where the fit has no such reward."""
    planted = crowds.planted
    assert planted is not None
    if not isinstance(found, MCEFit) or planted.game.r_action is None or crowds.d != planted.game.A:
        matrices = found.rollout(planted.flow[:, 0]).matrices
        return {"choices P": planted.kernels.numpy()}, {"choices P": matrices.detach().cpu().numpy()}
    flow = planted.flow[:, :-1]  # (n, N, d)
    times = torch.arange(flow.shape[1], dtype=torch.float64).view(-1, 1, 1)
    truth = planted.game.r_action(times, flow.movedim(1, 0).unsqueeze(2)).squeeze(2).movedim(1, 0)
    learned = found.reward(flow, times.squeeze(-1) / flow.shape[1])
    offset = (learned - truth).mean()  # no data can tell a constant
    names = [name for name in found.parameters if name in planted.parameters]
    kinds = {"reward of a move, along the flow": (truth, learned - offset)}
    if names:
        values = torch.tensor([planted.parameters[name] for name in names])
        kinds[", ".join(names)] = (values, torch.stack([found.parameters[name].double() for name in names]))
    return (
        {kind: pair[0].cpu().numpy() for kind, pair in kinds.items()},
        {kind: pair[1].detach().cpu().numpy() for kind, pair in kinds.items()},
    )
