"""The networks of all modes: from a window of states and actions, and an instruction, to logits at each of its steps.

Shapes: B windows, K steps, W words, d width, A actions, T = W + 2 K - 1 tokens.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.spaces import Obs, count_rows, map_obs
from .config import TDTConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
}


def dropped(x: Tensor, keep: Tensor | None, site: int) -> Tensor:
    """Dropout with a mask that is given.

    :param x: (B, ·, ·)
    :param keep: factors of all sites, (sites, B, ≥ ·, ≥ ·); None drops nothing
    :param site: which one this is
    :return: as ``x``
    """
    return x if keep is None else x * keep[site, :, : x.shape[1], : x.shape[2]]


class Cloner(nn.Module):
    """What all modes share: they read states and the instruction, and say how likely each action is.

    :param features: what reads observations first, with an attribute ``features_dim``
    :param text: see :mod:`.text`
    :param n_actions: A
    :param cfg: sizes
    """

    sites: tuple[int, int, int]
    """How many places drop numbers, and of how many tokens of which width at most."""

    def __init__(self, features: nn.Module, text: nn.Module, n_actions: int, cfg: TDTConfig) -> None:
        super().__init__()
        self.n_actions, self.width, self.precision = n_actions, cfg.width, cfg.precision
        self.reads_text = cfg.mode != "tdt_no_text"
        self.encoder = nn.Sequential(features, nn.Linear(int(features.features_dim), cfg.width), nn.Tanh())  # type: ignore[arg-type]
        self.text = text

    def encode(self, obs: Obs) -> Tensor:
        """:return: observations (N, *O) as states, (N, d)"""
        with self._autocast():
            return self.encoder(obs).float()  # type: ignore[no-any-return]

    def encode_windows(self, obs: Obs) -> Tensor:
        """:return: observations (B, K, *O) as states, (B, K, d)"""
        rows = count_rows(obs)
        return self.encode(map_obs(lambda part: part.flatten(0, 1), obs)).view(rows, -1, self.width)

    def read(self, mission: Tensor) -> tuple[Tensor, Tensor]:
        """:return: vectors of an instruction, (B, W, d), and which of them are no padding, (B, W)"""
        return self.text(mission if self.reads_text else mission[:, :0])  # type: ignore[no-any-return]

    def meaning(self, mission: Tensor) -> Tensor:
        """:return: the mean of the vectors of an instruction, normalised as in a block; zero of an empty one, (B, d)"""
        vectors, words = self.read(mission)
        mean = (vectors * words.unsqueeze(-1)).sum(1) / words.sum(1, keepdim=True).clamp(min=1)
        return F.layer_norm(mean, mean.shape[-1:])

    def keep(self, rows: int, share: float, generator: torch.Generator) -> Tensor | None:
        """Draw what dropout keeps.

        :param rows: B
        :param share: that is dropped
        :param generator: where the masks come from
        :return: factors, (sites, B, tokens, width); None where nothing is dropped
        """
        if not share:
            return None
        count, tokens, width = self.sites
        drawn = torch.rand(count, rows, tokens, width, generator=generator, device=generator.device)
        return drawn.ge_(share).div_(1 - share)

    def forward(
        self,
        mission: Tensor,
        states: Tensor,
        actions: Tensor,
        steps: Tensor,
        real: Tensor,
        keep: Tensor | None = None,
        newest: bool = False,
    ) -> Tensor:
        """Tell which actions follow.

        :param mission: the instruction, (B, W) int64
        :param states: as of :meth:`encode`, (B, K, d)
        :param actions: those after each state, of which the last is not looked at and may be missing, (B, K) int64
        :param steps: place of each step in its episode, (B, K) int64
        :param real: steps that are no padding, (B, K)
        :param keep: see :meth:`keep`
        :param newest: tell of the last step alone
        :return: logits, (B, K, A), or (B, 1, A)
        """
        with self._autocast():
            return self.logits(mission, states, actions, steps, real, keep, newest).float()

    def logits(self, *inputs: Any) -> Tensor:
        """See :meth:`forward`."""
        raise NotImplementedError

    def _autocast(self) -> torch.autocast:
        device = next(self.parameters()).device.type
        # Without the cache of converted weights, which a recorded step would take for the weights themselves.
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False)


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)): a block that normalises before it reads (arXiv 2002.04745).

    :param cfg: sizes
    """

    def __init__(self, cfg: TDTConfig) -> None:
        super().__init__()
        self.heads, self.activation = cfg.heads, _ACTIVATIONS[cfg.activation]
        self.norms = nn.ModuleList(nn.LayerNorm(cfg.width) for _ in range(2))
        self.inputs, self.output = nn.Linear(cfg.width, 3 * cfg.width), nn.Linear(cfg.width, cfg.width)
        self.up, self.down = nn.Linear(cfg.width, 4 * cfg.width), nn.Linear(4 * cfg.width, cfg.width)

    def forward(self, x: Tensor, allowed: Tensor, keep: Tensor | None, read: slice = slice(None)) -> Tensor:
        """:return: those tokens (B, T, d) that are read, after the block; in ``allowed``, (B, 1, T, T), 0 lets one
        attend to another, and minus infinity does not"""
        split = self.inputs(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, d / heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, d / heads) each
        x, queries, allowed = x[:, read], queries[:, :, read], allowed[:, :, read]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
        x = x + dropped(self.output(attended.transpose(1, 2).flatten(2)), keep, 0)
        return x + dropped(self.down(self.activation(self.up(self.norms[1](x)))), keep, 1)


class TextDecisionTransformer(Cloner):
    """A transformer over the words of the instruction, states and actions: w_1 … w_W, s_0, a_0, s_1, …, s_(K-1).

    Words attend to all words, states and actions to all words and to what is not after them; what an action depends on
    is read at the token of its state. Neither rewards nor returns are tokens. Where only one step is looked at, actions
    are left out, and each state attends to the words and to itself.

    The parameters as :class:`Cloner`.
    """

    def __init__(self, features: nn.Module, text: nn.Module, n_actions: int, cfg: TDTConfig) -> None:
        super().__init__(features, text, n_actions, cfg)
        words, width = int(text.slots), cfg.width  # type: ignore[arg-type]
        tokens = 2 * cfg.context - 1 if cfg.window > 1 else cfg.context
        self.window, self.causal_text = cfg.window, cfg.causal_text
        self.sites = (1 + 2 * cfg.layers, words * self.reads_text + tokens, width)
        self.actions = nn.Embedding(n_actions + 1, width)  # the last is "none"
        self.kinds = nn.Parameter(torch.zeros(2, width))  # of states and of actions
        self.places = nn.Parameter(torch.zeros(2 * cfg.window - 1, width))
        self.text_places = nn.Parameter(torch.zeros(words, width))  # those of words are also their kind
        self.time = nn.Embedding(cfg.step_embedding, width) if cfg.step_embedding else None
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_actions)
        begin_small_(self)

    def logits(
        self,
        mission: Tensor,
        states: Tensor,
        actions: Tensor,
        steps: Tensor,
        real: Tensor,
        keep: Tensor | None,
        newest: bool,
    ) -> Tensor:
        """See :meth:`Cloner.forward`."""
        text, words = self.read(mission)
        time = 0.0 if self.time is None else self.time(steps.clamp(max=self.time.num_embeddings - 1))
        tokens, exist = states + self.kinds[0] + time, real
        if self.window > 1:
            moves = F.pad(self.actions(actions[:, : states.shape[1] - 1]).tanh(), (0, 0, 0, 1)) + self.kinds[1] + time
            tokens = torch.stack((tokens, moves), 2).flatten(1, 2)[:, :-1]  # s_0, a_0, …, s_(K-1)
            exist = real.repeat_interleave(2, 1)[:, :-1]
        x = torch.cat((text + self.text_places[: text.shape[1]], tokens + self.places), 1)  # (B, T, d)
        x = dropped(x, keep, 0)
        allowed = torch.zeros((), device=x.device).where(self.allowed(words, exist), -torch.inf)
        # What follows is read at states alone, so that the last block asks no more.
        states_at = slice(-1, None) if newest else slice(text.shape[1], None, 2 if self.window > 1 else 1)
        for index, block in enumerate(self.blocks):
            read = states_at if index == len(self.blocks) - 1 else slice(None)
            x = block(x, allowed, None if keep is None else keep[1 + 2 * index :], read)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def allowed(self, words: Tensor, exist: Tensor) -> Tensor:
        """Which tokens attend to which.

        :param words: that are no padding, (B, W)
        :param exist: states and actions that are none, (B, T - W)
        :return: whether token i attends to j, (B, 1, T, T); padding, to which no other does, attends to itself
        """
        keys = torch.cat((words, exist), 1).unsqueeze(1)  # (B, 1, T)
        j = torch.arange(keys.shape[-1], device=keys.device)
        i, count = j.unsqueeze(1), words.shape[1]
        allowed = j <= i
        if not self.causal_text:
            allowed = allowed | ((i < count) & (j < count))
        if self.window == 1:
            allowed = allowed & (j < count)
        return (keys & allowed | (i == j)).unsqueeze(1)


class FiLMBlock(nn.Module):
    """x + MLP(LN(x)), whose hidden units the instruction scales and shifts (FiLM, arXiv 1709.07871).

    :param cfg: sizes
    :param hidden: units
    """

    def __init__(self, cfg: TDTConfig, hidden: int) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[cfg.activation]
        self.norm = nn.LayerNorm(cfg.width)
        self.up, self.down = nn.Linear(cfg.width, hidden), nn.Linear(hidden, cfg.width)
        self.film = nn.Linear(cfg.width, 2 * hidden)

    def forward(self, x: Tensor, meaning: Tensor, keep: Tensor | None, site: int) -> Tensor:
        """:return: of rows (B, K, d) under instructions (B, d): (B, K, d)"""
        scale, shift = self.film(meaning).unsqueeze(1).chunk(2, -1)  # (B, 1, hidden) each
        return x + dropped(self.down(self.activation(self.up(self.norm(x)) * (1 + scale) + shift)), keep, site)


class FiLMCloner(Cloner):
    """A residual perceptron over the last K states side by side, those before the window being zero.

    Its L blocks have h hidden units each, so many that all weights are as many as those of the transformer's blocks::

        K d^2 + L (d h + h d + 2 d h) = 12 L d^2,   so h = 3 d - K d / (4 L)

    The parameters as :class:`Cloner`.
    """

    def __init__(self, features: nn.Module, text: nn.Module, n_actions: int, cfg: TDTConfig) -> None:
        super().__init__(features, text, n_actions, cfg)
        hidden = max(cfg.width, 3 * cfg.width - cfg.context * cfg.width // (4 * cfg.layers))
        self.sites = (1 + cfg.layers, cfg.context, cfg.width)
        self.context = cfg.context
        self.mix = nn.Linear(cfg.context * cfg.width, cfg.width)
        self.blocks = nn.ModuleList(FiLMBlock(cfg, hidden) for _ in range(cfg.layers))
        self.norm, self.head = nn.LayerNorm(cfg.width), nn.Linear(cfg.width, n_actions)
        begin_small_(self)

    def logits(
        self,
        mission: Tensor,
        states: Tensor,
        actions: Tensor,
        steps: Tensor,
        real: Tensor,
        keep: Tensor | None,
        newest: bool,
    ) -> Tensor:
        """See :meth:`Cloner.forward`."""
        padded = F.pad(states * real.unsqueeze(-1), (0, 0, self.context - 1, 0))
        if newest:
            padded = padded[:, -self.context :]
        x = dropped(self.mix(padded.unfold(1, self.context, 1).flatten(2)), keep, 0)  # (B, K, d)
        meaning = self.meaning(mission)
        for index, block in enumerate(self.blocks):
            x = block(x, meaning, keep, 1 + index)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class MLPCloner(Cloner):
    """A perceptron over each state and the mean of the words, the code's baseline without its frozen BERT.

    The parameters as :class:`Cloner`.
    """

    def __init__(self, features: nn.Module, text: nn.Module, n_actions: int, cfg: TDTConfig) -> None:
        super().__init__(features, text, n_actions, cfg)
        widths = (2 * cfg.width, *cfg.net_arch)
        self.sites = (len(cfg.net_arch), cfg.context, max(widths))
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], n_actions)
        begin_small_(self.text)
        begin_small_(self.head)

    def logits(
        self,
        mission: Tensor,
        states: Tensor,
        actions: Tensor,
        steps: Tensor,
        real: Tensor,
        keep: Tensor | None,
        newest: bool,
    ) -> Tensor:
        """See :meth:`Cloner.forward`."""
        states = states[:, -1:] if newest else states
        meaning = self.meaning(mission).unsqueeze(1).expand_as(states)
        x = torch.cat((states, meaning), -1)  # (B, K, 2 d)
        for site, layer in enumerate(self.layers):
            x = dropped(layer(x).relu(), keep, site)
        return self.head(x)  # type: ignore[no-any-return]


def begin_small_(module: nn.Module) -> None:
    """Draw the weights of linear layers and tables from N(0, 0.02^2), as minGPT; what reads states keeps its own."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding) and not name.startswith("encoder."):
            nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
