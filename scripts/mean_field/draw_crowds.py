"""Pictures of where a crowd goes."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from ...envs.mean_field import MFGame
from ..figures import COLOURS, plain_axes

BRIGHT, FADED = 99.0, 1e-3
"""The brightest colour is for masses from this percentile on, the darkest below this share of it (our choice)."""

CROWDED = 3.0
"""Where the greatest mass is more than so many times the brightest colour's, a linear scale up to it would leave the
rest dark (our choice)."""

FILM = 8.0
"""Seconds that a film lasts unless told otherwise (our choice)."""

WALL = "0.72"


def reachable(game: MFGame) -> np.ndarray:
    """Which states anybody can ever be in, however long the game; on a grid, the others are walls.

    :param game: the game
    :return: (S,) bool
    """
    reached = (game.mu0 > 0).flatten(0, -2).any(0)
    legal = game.legal
    while True:
        here = reached.unsqueeze(1) & legal  # (S, A)
        following = reached.clone()
        if game.succ_idx is not None:
            likely = torch.ones_like(game.succ_idx, dtype=torch.bool) if game.succ_p is None else game.succ_p > 0
            likely = likely.flatten(0, -4).any(0) if likely.ndim > 3 else likely
            following[game.succ_idx[likely & here.unsqueeze(2)]] = True
        else:
            following |= _led_to(game, here)
        if bool((following == reached).all()):
            return reached.cpu().numpy()
        reached = following


def _led_to(game: MFGame, here: Tensor) -> Tensor:
    """States where deterministic moves and the noise after them can lead."""
    assert game.post is not None
    moved = here.new_zeros(game.S)
    moved[game.post[here]] = True
    if game.noise_idx is None or game.noise_p is None:
        return moved
    likely = game.noise_p > 0
    likely = likely.flatten(0, -3).any(0) if likely.ndim > 2 else likely
    spread = here.new_zeros(game.S)
    spread[game.noise_idx[likely & moved.unsqueeze(1)]] = True
    return spread


class FlowPicture:
    """A crowd at one time after another: on a grid a map, else bars over a map of all times; populations side by side.

    :param game: the game
    :param flow: (n_pop, H + 1, S)
    :param title: above the figure
    """

    def __init__(self, game: MFGame, flow: np.ndarray, title: str) -> None:
        self.flow, self.H, self.title = flow, game.H, title
        self.grid = game.grid
        count = flow.shape[0]
        wide = 3.4 if count > 1 else 5.2
        shape = 1.0 if self.grid is None else self.grid[1] / self.grid[0]
        tall = 5.1 if self.grid is None else (wide - 0.4) * shape + 1.2
        self.figure = Figure(figsize=(wide * count + 0.9, tall), dpi=100, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.heading = self.figure.suptitle(self._heading(0), fontsize=11)
        self.maps: list[Any] = []
        self.marks: list[Any] = []
        self.bars: list[Any] = []
        if self.grid is None:
            self._lines(game)
        else:
            self._cells(~reachable(game))
        self._drawn()
        self.figure.set_layout_engine("none")  # what follows fits as the first frame does; once is enough

    def _heading(self, t: int) -> str:
        width = int(self.figure.get_size_inches()[0] * 12)
        return f"{textwrap.fill(self.title, width)}\ntime {t} of {self.H}"

    def _cells(self, walls: np.ndarray) -> None:
        assert self.grid is not None
        width, height = self.grid
        self.walls = walls.reshape(height, width)
        look, norm = colours(), colour_scale(self.flow)
        panels = self.figure.subplots(1, len(self.flow), squeeze=False)[0]
        for number, axes in enumerate(panels):
            self.maps.append(axes.imshow(self._cells_at(number, 0), cmap=look, norm=norm, interpolation="nearest"))
            axes.set(xlabel="x")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(7, integer=True))
            axes.tick_params(length=0, labelsize=8)
            if len(panels) > 1:
                axes.set_title(f"population {number}", fontsize=10)
        panels[0].set_ylabel("y")
        _colour_bar(self.figure, self.maps[0], panels, norm)

    def _cells_at(self, population: int, t: int) -> Any:
        assert self.grid is not None
        return _shown(self.flow[population, t], self.walls)

    def _lines(self, game: MFGame) -> None:
        panels = self.figure.subplots(2, len(self.flow), squeeze=False, height_ratios=(1, 1.25), sharex="col")
        norm = colour_scale(self.flow)
        states = np.arange(game.S)
        for number, (upper, lower) in enumerate(panels.T):
            flow = self.flow[number]
            self.bars.append(upper.bar(states, flow[0], 0.9, color=COLOURS[number % len(COLOURS)]))
            upper.set_ylim(0, 1.05 * flow.max())
            upper.yaxis.set_major_formatter(percent)
            plain_axes(upper, "y")
            look: dict[str, Any] = {"cmap": colours(), "norm": norm, "aspect": "auto", "interpolation": "nearest"}
            self.maps.append(lower.imshow(_shown(flow), **look))
            self.marks.append(lower.axhline(0, color="white", lw=1.6))
            lower.set(xlabel="state")
            lower.yaxis.set_major_locator(MaxNLocator(6, integer=True))
            _name_states(lower, game.labels, game.S)
            if len(panels.T) > 1:
                upper.set_title(f"population {number}", fontsize=10)
        panels[0, 0].set_ylabel("share now")
        panels[1, 0].set_ylabel("time")
        _colour_bar(self.figure, self.maps[0], panels[1], norm)

    def frame(self, t: int) -> np.ndarray:
        """Draw one time.

        :param t: 0 to H
        :return: (height, width, 3) bytes
        """
        self.heading.set_text(self._heading(t))
        for number, drawn in enumerate(self.maps):
            if self.grid is not None:
                drawn.set_data(self._cells_at(number, t))
        for mark in self.marks:
            mark.set_ydata([t, t])
        for bars, flow in zip(self.bars, self.flow, strict=False):
            for bar, height in zip(bars, flow[t], strict=True):
                bar.set_height(height)
        return self._drawn()

    def _drawn(self) -> np.ndarray:
        canvas: Any = self.canvas  # some of its methods are untyped
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def flow_film(path: Path, game: MFGame, flow: np.ndarray, title: str, fps: float = 0.0) -> None:
    """Film a flow.

    :param path: file to write, .gif or .mp4
    :param game: the game
    :param flow: (n_pop, H + 1, S)
    :param title: above the picture
    :param fps: times of the game per second; 0: as many as make the film last about eight seconds, 2 to 15
    """
    picture = FlowPicture(game, flow, title)
    fps = fps or float(np.clip(game.H / FILM, 2, 15))
    frames = (picture.frame(t) for t in range(game.H + 1))
    if path.suffix == ".gif":
        _write_gif(path, frames, fps)
    else:
        _write_mp4(path, frames, fps)


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    # One palette for all, from the first frame, which has the colour bar in it: colours do not flicker.
    first = next(frames)
    palette = Image.fromarray(first).quantize(255, dither=Image.Dither.NONE).getpalette() or []
    images = [_indexed(frame, palette) for frame in (first, *frames)]
    beat = round(1000 / fps)
    durations = [beat] * (len(images) - 1) + [max(1500, beat)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def _indexed(frame: np.ndarray, palette: Sequence[int]) -> Image.Image:
    """Replace each colour by the nearest of a palette; Pillow's own search misses white by a little."""
    colours, places = np.unique(frame.reshape(-1, 3) @ np.array([65536, 256, 1]), return_inverse=True)
    parts = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1)
    known = np.array(palette).reshape(-1, 3)
    nearest = np.square(parts[:, None] - known).sum(-1).argmin(1).astype(np.uint8)
    image = Image.fromarray(nearest[places].reshape(frame.shape[:2]))
    image.putpalette(palette)
    return image


def _write_mp4(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    how: dict[str, Any] = {"format": "FFMPEG", "fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2}
    film: Any
    with imageio.get_writer(path, **how) as film:
        for frame in frames:
            film.append_data(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])  # H.264 wants even sizes


def flow_still(path: Path, game: MFGame, flow: np.ndarray, title: str, moments: int = 6) -> None:
    """Draw a flow on a grid at a few times; elsewhere all times are one map anyway.

    :param path: file to write
    :param game: the game
    :param flow: (n_pop, H + 1, S)
    :param title: above the figure
    :param moments: how many times on a grid
    """
    if game.grid is None:
        image = Image.fromarray(FlowPicture(game, flow, title).frame(game.H))
        image.save(path)
        return
    times = list(dict.fromkeys(np.linspace(0, game.H, moments).round().astype(int).tolist()))
    width, height = game.grid
    walls = ~reachable(game).reshape(height, width)
    norm = colour_scale(flow)
    size = (2.0 * len(times) + 1, 2.0 * height / width * len(flow) + 1.1)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = figure.subplots(len(flow), len(times), squeeze=False)
    for number, row in enumerate(panels):
        for axes, t in zip(row, times, strict=True):
            image_of = axes.imshow(_shown(flow[number, t], walls), cmap=colours(), norm=norm, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if number == 0:
                axes.set_title(f"time {t}", fontsize=9)
        if len(flow) > 1:
            row[0].set_ylabel(f"population {number}", fontsize=9)
    figure.suptitle(textwrap.fill(title, 90), fontsize=11)
    _colour_bar(figure, image_of, panels.flat, norm)
    figure.savefig(path)


def colours() -> Colormap:
    """:return: of shares; walls and what is missing are grey."""
    return colormaps["viridis"].with_extremes(bad=WALL)


def colour_scale(flow: np.ndarray) -> Normalize:
    """Logarithmic where masses differ much, as they do in a crowd that starts in one place and spreads.

    :param flow: masses, of any shape
    :return: from masses to [0, 1]
    """
    some = flow[flow > 0]
    bright = float(np.percentile(some, BRIGHT))
    if float(some.min()) > bright / 20 and float(some.max()) <= CROWDED * bright:
        return Normalize(0, float(some.max()))
    return LogNorm(max(float(some.min()), bright * FADED) * 0.999, bright * 1.001)


def _shown(mass: np.ndarray, walls: np.ndarray | None = None) -> np.ndarray:
    """What a logarithmic map shows: nobody as hardly anybody, walls as nothing."""
    shown = np.maximum(mass, np.finfo(float).tiny)
    return shown if walls is None else np.ma.masked_where(walls, shown.reshape(walls.shape))


def _colour_bar(figure: Figure, image: Any, panels: Iterable[Any], norm: Normalize) -> None:
    logarithmic = isinstance(norm, LogNorm)
    how: dict[str, Any] = {
        "pad": 0.015,
        "aspect": 28,
        "fraction": 0.045,
        "extend": "both" if logarithmic else "neither",
    }
    bar = figure.colorbar(image, ax=list(panels), **how)
    bar.set_label("share of the population", fontsize=9)
    if logarithmic:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(percent)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=8)


def percent(share: float, _: Any = None) -> str:
    """:return: a share, as axes show it."""
    return f"{100 * share:.3g} %"


def _name_states(axes: Axes, labels: Sequence[str], count: int) -> None:
    if len(labels) == count <= 24:
        long = max(map(len, labels)) * count > 40
        turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if long else {}
        axes.set_xticks(range(count), labels, fontsize=8, parse_math=False, **turned)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
