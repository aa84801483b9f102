"""``headway benchmark frostbite``: frames per CPU-second with rules and missions, and what the transformer does in one.

Frames are those of the emulator. Beside ours are ale-py's own environment, with Gymnasium's preprocessing where screens
are seen, which counts nothing; and the transformer written plainly, as nanoGPT is, in a loop that draws windows one by
one and encodes all of a window again for every action. Seconds are the process's own, so that others' work on the same
machine counts for nothing.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import AtariPreprocessing
from torch import Tensor, nn
from torch.nn import functional as F

from ..agents import TDT
from ..agents.core.config import Range
from ..agents.core.data import Dataset
from ..envs.frostbite import FrostbiteEnv
from ..envs.frostbite.players import Random, player_for
from ..envs.missions import find_task
from ..wrappers.missions import make_text_game
from .options import TurnOptions
from .runs import check_outputs
from .timing import in_json, noted, print_conditions, spread, take_turns, write_json

Seen = Literal["ram", "pixels"]
MISSIONS, GAME, BARE = "missions", "rules", "ale-py alone"
RANDOM, AHEAD = "random player", "look-ahead player"
HEADWAY, PLAIN = "headway", "plain"

EPISODES, STEPS = 10, 300
"""Of the data that are learnt from; their numbers are drawn, since speed does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class FrostbiteSpeedOptions(TurnOptions):
    """Frames/s of Frostbite with rules and missions, updates/s and actions/s of TDT, side by side with plain code"""

    obs: tuple[Seen, ...] = ("ram", "pixels")
    """What is seen: numbers from the memory, screens."""

    parts: tuple[Literal["frames", "data", "updates", "acting"], ...] = ("frames", "data", "updates", "acting")
    """What is timed: the environment, players that make data, gradient steps, decisions of several rows at once."""

    rows: Annotated[int, Range(1)] = 32
    """Episodes that are acted in together."""


@dataclass(frozen=True)
class Measurement:
    """What one side did.

    :param part: of the options' ``parts``
    :param obs: what is seen
    :param side: who
    :param rates: frames, gradient steps or actions per CPU-second, one per round
    """

    part: str
    obs: str
    side: str
    rates: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param work: does something, and returns how much it was
    """

    work: Callable[[], float]

    def run(self, count: int) -> float:
        """:return: how much was done in a second of this process"""
        start = time.process_time()
        done = sum(self.work() for _ in range(count))
        return done / max(time.process_time() - start, 1e-9)


# -- the environment ---------------------------------------------------------------------------------------------------


def _stepping(env: gym.Env[Any, Any], frames: int = 4) -> Turn:
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def step() -> float:
        _, _, terminated, truncated, _ = env.step(int(rng.integers(18)))
        if terminated or truncated:
            env.reset()
        return frames

    return Turn(step)


def _bare(obs: Seen) -> gym.Env[Any, Any]:
    import ale_py

    gym.register_envs(ale_py)
    plain: dict[str, Any] = {"repeat_action_probability": 0.0, "full_action_space": True}
    if obs == "ram":
        return gym.make("ALE/Frostbite-v5", obs_type="ram", frameskip=4, **plain)
    return AtariPreprocessing(gym.make("ALE/Frostbite-v5", frameskip=1, **plain), frame_skip=4)


def frames_side(obs: Seen, side: str) -> Turn:
    """:return: a side of the part "frames" """
    if side == BARE:
        return _stepping(_bare(obs))
    return _stepping(make_text_game("frostbite", obs=obs) if side == MISSIONS else FrostbiteEnv(obs=obs))


def data_side(obs: Seen, side: str) -> Turn:
    """:return: a side of the part "data": a player in a game that goes on from one lost game to the next"""
    env, rng = FrostbiteEnv(), np.random.default_rng(0)
    env.reset(seed=0)
    player = Random(rng) if side == RANDOM else player_for(env, find_task("frostbite", "max_points"), rng)

    def play() -> float:
        if env.step(player.act())[2]:
            env.reset()
        return env.frame_skip

    return Turn(play)


# -- the transformer ---------------------------------------------------------------------------------------------------


def drawn_data(obs: Seen) -> Dataset:
    """:return: data of the form of Frostbite's, whose numbers are drawn"""
    env: Any = make_text_game("frostbite", obs=obs)
    key, space, rows = env.key, env.observation_space, EPISODES * STEPS
    rng = np.random.default_rng(0)
    shape = (rows, *space[key].shape)
    shown = rng.random(shape, np.float32) if obs == "ram" else rng.integers(0, 256, shape, np.uint8)
    sentences = [env.tokenizer.encode(task.train[0]) for task in list(env.tasks.values())[:EPISODES]]
    tokens = np.repeat(np.stack(sentences), STEPS, 0)
    seen = {key: torch.from_numpy(shown), "mission_tokens": torch.from_numpy(tokens)}
    return Dataset(
        observation_space=space,
        action_space=env.action_space,
        obs=seen,
        final_obs={name: part[::STEPS] for name, part in seen.items()},
        actions=torch.from_numpy(rng.integers(0, 18, rows)),
        rewards=torch.zeros(rows, dtype=torch.float64),
        lengths=torch.full((EPISODES,), STEPS),
        terminated=torch.ones(EPISODES, dtype=torch.bool),
    )


class PlainBlock(nn.Module):
    """A block as nanoGPT has it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """:return: (B, T, d)"""
        rows, count, width = x.shape
        parts = self.attention(self.first(x)).split(width, 2)
        queries, keys, values = (part.view(rows, count, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.drop(self.project(mixed.transpose(1, 2).reshape(rows, count, width)))
        return x + self.drop(self.mlp(self.second(x)))  # type: ignore[no-any-return]


class PlainTransformer(nn.Module):
    """The same transformer over words, states and actions, written plainly; causal throughout.

    :param agent: whose sizes it has
    """

    def __init__(self, agent: TDT) -> None:
        super().__init__()
        cfg, network = agent.config, agent.network.module
        self.features, self.read = agent.features(), nn.LazyLinear(cfg.width)
        self.words, self.actions = nn.Embedding(4096, cfg.width), nn.Embedding(18, cfg.width)
        self.places = nn.Parameter(torch.zeros(1, 20 + 2 * cfg.context, cfg.width))
        self.drop = nn.Dropout(cfg.dropout)
        blocks = [PlainBlock(cfg.width, cfg.heads, cfg.dropout) for _ in range(cfg.layers)]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, network.n_actions)

    def forward(self, tokens: Tensor, obs: Tensor, actions: Tensor) -> Tensor:
        """:return: logits of windows, (B, K, 18)"""
        rows, steps = actions.shape
        states = torch.tanh(self.read(self.features(obs.flatten(0, 1)))).view(rows, steps, -1)
        moves = torch.tanh(self.actions(actions))
        x = torch.cat((self.words(tokens), torch.stack((states, moves), 2).flatten(1, 2)), 1)
        x = self.blocks(self.drop(x + self.places[:, : x.shape[1]]))
        return self.head(self.norm(x))[:, tokens.shape[1] :: 2]  # type: ignore[no-any-return]


class PlainLoop:
    """Learns and acts in the plainest way.

    :param data: what is learnt from
    :param agent: whose sizes it has
    """

    def __init__(self, data: Dataset, agent: TDT) -> None:
        seen: Any = data.obs
        self.cfg, self.tokens, self.actions = agent.config, seen["mission_tokens"], data.actions
        self.obs: Tensor = next(part for key, part in seen.items() if key != "mission_tokens")
        self.model, self.rng = PlainTransformer(agent), np.random.default_rng(0)
        self.model(*self.windows(2))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), 6e-4, (0.9, 0.95), weight_decay=0.1)

    def windows(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """:return: words (B, W), what is seen (B, K, …) and actions (B, K), one window after the other"""
        parts = []
        for _ in range(rows):
            start = int(self.rng.integers(EPISODES)) * STEPS + int(self.rng.integers(STEPS - self.cfg.context))
            stop = start + self.cfg.context
            parts.append((self.tokens[start], self.obs[start:stop], self.actions[start:stop]))
        tokens, obs, actions = (torch.stack(part) for part in zip(*parts, strict=True))
        return tokens, obs.float() / 255 if obs.dtype == torch.uint8 else obs, actions

    def update(self) -> float:
        """Take a gradient step; :return: 1"""
        tokens, obs, actions = self.windows(self.cfg.batch_size)
        logits = self.model(tokens, obs, actions)
        loss = F.cross_entropy(logits.flatten(0, 1), actions.flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return 1

    @torch.no_grad()
    def act(self, window: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """:return: the likeliest last actions of windows"""
        return self.model(*window)[:, -1].argmax(-1)  # type: ignore[no-any-return]


def updates_side(obs: Seen, side: str) -> Turn:
    """:return: a side of the part "updates" """
    data = drawn_data(obs)
    agent = TDT("MultiInputPolicy", dataset=data, seed=0, device="cpu")
    if side == PLAIN:
        return Turn(PlainLoop(data, agent).update)

    def update() -> float:
        agent.train(1)
        return 1

    return Turn(update)


def acting_side(obs: Seen, side: str, rows: int) -> Turn:
    """:return: a side of the part "acting", in a full window"""
    data = drawn_data(obs)
    agent = TDT("MultiInputPolicy", dataset=data, seed=0, device="cpu")
    if side == PLAIN:
        loop = PlainLoop(data, agent)
        loop.model.eval()
        window = loop.windows(rows)

        def act() -> float:
            loop.act(window)
            return rows

        return Turn(act)
    seen: Any = {name: part[:rows].numpy() for name, part in data.obs.items()}  # type: ignore[union-attr]
    memory: Any = None
    for _ in range(agent.config.context):
        _, memory = agent.predict(seen, memory, deterministic=True)

    def predict() -> float:
        agent.predict(seen, memory, deterministic=True)
        return rows

    return Turn(predict)


# -- measuring ---------------------------------------------------------------------------------------------------------

SIDES = {
    "frames": (MISSIONS, GAME, BARE),
    "data": (RANDOM, AHEAD),
    "updates": (HEADWAY, PLAIN),
    "acting": (HEADWAY, PLAIN),
}
UNITS = {"frames": "frames", "data": "frames", "updates": "gradient steps", "acting": "actions"}


def frostbite_speed(options: FrostbiteSpeedOptions) -> list[Measurement]:
    """Run ``headway benchmark frostbite``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    measurements: list[Measurement] = []
    with noted(options.threads, ("ale-py",)) as conditions:
        for part in options.parts:
            for obs in options.obs if part != "data" else ("ram",):

                def make(side: str, rows: int, part: str = part, obs: Seen = obs) -> Turn:
                    if part == "acting":
                        return acting_side(obs, side, rows)
                    return {"frames": frames_side, "data": data_side, "updates": updates_side}[part](obs, side)

                planned = [(side, options.rows if part == "acting" else 1) for side in SIDES[part]]
                timed, _ = take_turns(f"{part}, {obs}", planned, make, options.rounds, options.seconds, warm_up=2)
                measurements += [Measurement(part, obs, t.name, [rate for rate, _ in t.laps]) for t in timed]
    print_conditions("Frostbite with instructions", conditions)
    print(f"per CPU-second; medians of {options.rounds} rounds [least, greatest]; acting: {options.rows} rows at once")
    compared = ratios(measurements)
    for m in measurements:
        ratio = compared.get((m.part, m.obs, m.side))
        beside = "" if ratio is None else f"{ratio:6.2f} x the last line"
        print(f"{m.part:<8} {m.obs:<7} {m.side:<18} {spread(m.rates):>26} {UNITS[m.part]:<15}{beside}".rstrip())
    content = {
        "units": "per second of the process",
        "measurements": in_json(measurements),
        "ratios": [dict(zip(("part", "obs", "side"), key, strict=True)) | {"ratio": r} for key, r in compared.items()],
    }
    write_json(options.json, conditions, options, content)
    return measurements


def ratios(measurements: Sequence[Measurement]) -> dict[tuple[str, str, str], float]:
    """:return: median of each side over that of the last of its part, which is another's code; of players nothing"""
    medians = {(m.part, m.obs, m.side): m.median for m in measurements}
    return {
        (part, obs, side): median / medians[part, obs, SIDES[part][-1]]
        for (part, obs, side), median in medians.items()
        if part != "data" and side != SIDES[part][-1]
    }
