"""The Text Decision Transformer.

Putterman, Lu, Mordatch, Abbeel: "Pretraining for Language-Conditioned Imitation with Transformers", submitted to ICLR
2022, OpenReview eCPCn25gat. The paper could not be read: this follows its abstract and the authors' public code,
Louiealbp/TDT.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...wrappers.missions import END, KNOWN, PAD
from ..bc import best_episodes
from ..core.compile import captured, compiled
from ..core.nets import Adam
from ..core.offline import Dataset, OfflineAgent, standardised
from ..core.policy import Memory
from ..core.spaces import Obs, count_rows, map_obs
from .config import Scope, TDTConfig
from .networks import Cloner, FiLMCloner, MLPCloner, TextDecisionTransformer
from .observations import ObservationParts, first_steps, missions_apart
from .text import NoText, SentenceEncoder, TaskEncoder, WordEncoder
from .windows import Steps, Windows, shifted, step_numbers, trimmed, windows_at

SCOPES: dict[str, Callable[[str], bool]] = {
    "encoder": lambda name: name.startswith("encoder."),
    "all": lambda name: True,
    "all_but_text": lambda name: not name.startswith("text"),
}
"""Which weights each takes up, by their names."""


def cloning_loss(network: Cloner, batch: Windows, keep: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """L = -mean over real steps of log pi(a_t | instruction, s_0, a_0, …, s_t): each step of a window is imitated.

    :param network: the policy
    :param batch: windows, with images already moved
    :param keep: see :meth:`Cloner.keep`
    :param smoothing: share of the target that is spread over all actions
    :return: the loss, and the share of actions that are the likeliest, scalars
    """
    states = network.encode_windows(batch.obs)
    logits = network(batch.mission, states, batch.actions, batch.steps, batch.real, keep)  # (B, K, A)
    loss = F.cross_entropy(
        logits.flatten(0, 1), batch.actions.flatten(), ignore_index=network.n_actions, label_smoothing=smoothing
    )
    right = (logits.argmax(-1) == batch.actions).sum() / batch.real.sum()
    return loss, right


@final
class TDT(OfflineAgent[TDTConfig]):
    """TDT: imitation of recorded episodes that have an instruction each, by a transformer that reads it.

    Each update does, on windows of K steps of one episode, ending with any of its steps::

        pi <- descend -E[log pi(a_t | w_1 … w_W, s_(t-K+1), a_(t-K+1), …, s_t)]

    An instruction is the observation's ``mission_tokens``, (W,) int64, see :mod:`.text`; ``mission_task`` may number
    the task. Where neither is there, states and actions are all that is read. The policy remembers the last K states
    and actions: pass the state that ``predict`` returns to the next call, as ``evaluate_policy`` does.

    Deviations from the authors' code: windows include an episode's last step and never cross episodes; padding is not
    attended to; words attend to all words; the cosine does not rise again; attention itself has no dropout; images pass
    Stable-Baselines3's NatureCNN, and one more layer. The baselines' text is learned, not BERT's.

    Parameters as :class:`~headway.agents.core.offline.OfflineAgent` (without ``seeds``), hyper-parameters as
    :class:`TDTConfig`.

    :param start_from: another TDT, or a file that one was saved to, to begin with, see ``transfer``
    """

    config_class = TDTConfig
    config: TDTConfig
    action_kinds = ("Discrete",)
    arguments = (*OfflineAgent.arguments, "start_from")
    start_from: "str | Path | TDT | None"

    # -- what it learns from -----------------------------------------------------------------------------------------

    def _check_seeds(self, seeds: Any) -> None:
        raise ValueError("TDT trains one seed at a time: leave seeds out, and train one agent for each seed=")

    def _setup_model(self) -> None:
        if self.dataset is not None and self.config.keep_best < 1:
            data: Any = self.dataset
            groups = missions_apart(first_steps(data.obs, data.lengths))
            self.dataset = best_episodes(self.dataset, self.config.keep_best, groups)
        super()._setup_model()

    def _load_data(self, dataset: Dataset) -> Any:
        rows = self._encode(dataset)
        mission = self.observed.mission(rows["obs"])
        if not self.observed.task_id:
            mission = trimmed(mission)
        return Steps(
            obs=map_obs(lambda part: part.to(self.device), self.observed.state(rows["obs"])),
            mission=mission.to(self.device),
            actions=self.actions.from_env(rows["actions"].to(self.device)).long(),
            steps=step_numbers((rows["terminated"] | rows["truncated"]).to(self.device)),
            rewards=rows["rewards"].to(self.device),
        )

    def draw(self, rows: int) -> Windows:
        """Draw windows, uniformly by the step that they end with.

        :param rows: B
        :return: them
        """
        data = self.need_data()
        return windows_at(data, self.draw_rows(len(data.steps), rows), self.config.context, self.actions.size)

    # -- networks ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        cfg = self.config
        self.observed = ObservationParts(self.codec, cfg.mode == "tdt_task_id")
        kinds: dict[str, type[Cloner]] = {"bc_text": FiLMCloner, "bc_mlp": MLPCloner}
        kind = kinds.get(cfg.mode, TextDecisionTransformer)
        network = kind(self.features(), self._text_encoder(), self.actions.size, self.config)
        if cfg.freeze != "nothing":
            self._freeze(network)
        self.network = self.track("network", network, optimiser=Adam(betas=(0.9, 0.95)), joint_norm=True)
        if self.start_from is not None:  # new, and not resumed or loaded
            self.transfer(self.start_from, cfg.transfer_scope)
        self._loss = compiled(cloning_loss, cfg.compile, self.device)
        self._step = captured(self._take_step, cfg.compile, self.modules, self.generators["update"])

    def _text_encoder(self) -> nn.Module:
        cfg, words = self.config, self.observed.words
        if cfg.mode == "tdt_task_id":
            return TaskEncoder(self.observed.tasks, cfg.width)
        if words is None:
            if cfg.mode in ("tdt_sentence_token", "bc_text"):
                raise ValueError(
                    f"mode={cfg.mode!r} reads an instruction, and observations have no 'mission_tokens': record it as "
                    "a Box of int64, (words,), or choose mode='tdt' or 'bc_mlp', which do without"
                )
            return NoText(cfg.width)
        if cfg.mode == "tdt_sentence_token":
            return SentenceEncoder(words, cfg.width, cfg.hashes, cfg.buckets)
        if cfg.vocabulary is None:
            self.config = replace(cfg, vocabulary=self._count_known())  # as it has to be in files
        assert self.config.vocabulary is not None
        return WordEncoder(self.config.vocabulary, words, cfg.width, cfg.hashes, cfg.buckets)

    def _count_known(self) -> int:
        """:return: one more than the largest id of a known word in the data; without data, in the space"""
        if self.dataset is None:
            space: Any = self.observation_space
            largest = min(int(space["mission_tokens"].high.max()), KNOWN - 1)
        else:
            tokens = self.observed.mission(self._encode(self.dataset)["obs"])
            largest = int(tokens.masked_fill(tokens >= KNOWN, PAD).max())
        return max(largest, END) + 1

    def _freeze(self, network: Cloner) -> None:
        text = self.config.freeze == "text"
        if text and (isinstance(network.text, NoText) or not network.reads_text):
            raise ValueError(
                f"freeze='text' freezes nothing: mode={self.config.mode!r} reads no text in these observations"
            )
        (network.text if text else network.encoder).requires_grad_(False)

    def features(self) -> nn.Module:
        """See :meth:`OfflineAgent.features`; of the state alone."""
        codec = self.observed.state_codec
        features = codec.features()
        if not self.config.normalize_obs:
            return features
        if list(codec.fields) != [codec.vector]:
            raise ValueError(f"normalize_obs scales vectors, and this is {self.observation_space}: leave it out")
        seen: Any = None if self.dataset is None else self.observed.state(self._encode(self.dataset)["obs"])
        return standardised(features, seen)

    @torch.no_grad()
    def transfer(self, source: "str | Path | TDT", scope: Scope = "all") -> None:
        """Begin with the weights of another one, which may have learnt from other missions, or without any.

        :param source: another TDT, or a file that one was saved to
        :param scope: encoder: what reads states; all: everything; all_but_text: everything but the vectors of words
            or tasks and their places
        :raises ValueError: its weights are of other shapes; nothing is changed then
        """
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
        other = source if isinstance(source, TDT) else TDT.load(source, device=self.device)
        theirs, own = (agent.network.module.state_dict() for agent in (other, self))
        chosen = [name for name in {**theirs, **own} if SCOPES[scope](name)]
        for name in chosen:
            there, here = (tuple(weights[name].shape) if name in weights else "missing" for weights in (theirs, own))
            if there != here:
                raise ValueError(
                    f"transfer({scope!r}) cannot take up {name}, which is {there} there and {here} here: build both "
                    "with the same sizes, mode and vocabulary=, or choose another scope"
                )
        for name in chosen:
            own[name].copy_(theirs[name])
        self.network.restart_optimiser()

    # -- acting ------------------------------------------------------------------------------------------------------

    def _new_memory(self, rows: int) -> Memory:
        """:return: the last K states (B, K, d) and K - 1 actions (B, K - 1), the newest last, and steps so far (B,)"""
        cfg, length = self.config, self.config.window
        return {
            "states": torch.zeros(rows, length, cfg.width, device=self.device),
            "actions": torch.full((rows, length - 1), self.actions.size, device=self.device),
            "steps": torch.zeros(rows, dtype=torch.int64, device=self.device),
        }

    def _act_with(
        self, memory: Memory, obs: Obs, deterministic: bool, generator: torch.Generator
    ) -> tuple[Tensor, Memory]:
        logits, states = self.logits_with(memory, obs)
        actions = logits.argmax(-1) if deterministic else drawn(logits, self.config.top_k, generator)
        return actions, {
            "states": states,
            "actions": torch.cat((memory["actions"], actions.unsqueeze(1)), 1)[:, 1:],
            "steps": memory["steps"] + 1,
        }

    def logits_with(self, memory: Memory, obs: Obs) -> tuple[Tensor, Tensor]:
        """Continue a window by one state.

        :param memory: of the steps before
        :param obs: encoded observations, (B, *O)
        :return: logits (B, A), and the last K states (B, K, d)
        """
        network, newest = self.network.module, memory["steps"].unsqueeze(1)
        states = torch.cat((memory["states"], network.encode(self.observed.state(obs)).unsqueeze(1)), 1)[:, 1:]
        back = torch.arange(states.shape[1] - 1, -1, -1, device=states.device)
        steps, real = (newest - back).clamp(min=0), back <= newest
        mission = self.observed.mission(obs)
        mission = mission if self.observed.task_id else trimmed(mission)
        logits = network(mission, states, memory["actions"], steps, real, newest=True)
        return logits.squeeze(1), states

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return self._act_with(self._new_memory(count_rows(obs)), obs, deterministic, generator)[0]

    @torch.no_grad()
    def text_sensitivity(self, windows: Windows, wrong_tokens: Tensor) -> float:
        """How much the text decides: the mean of KL(pi(.|right text) || pi(.|wrong text)) over real steps of windows.

        :param windows: as of :meth:`sample`
        :param wrong_tokens: other instructions for them, of any length, (B, W) or (W,) int64; in the mode tdt_task_id
            numbers of other tasks, (B, 1)
        :return: in nats per step; 0 where no text is read
        """
        network = self.network.module
        states = network.encode_windows(windows.obs)
        wrong = wrong_tokens.to(self.device).expand(len(windows.mission), -1)
        right, other = (
            network(mission, states, windows.actions, windows.steps, windows.real).log_softmax(-1)
            for mission in (windows.mission, wrong)
        )
        return float((right.exp() * (right - other)).sum(-1)[windows.real].mean())

    @torch.no_grad()
    def mission_effect(self, obs: Obs, other: Obs, memory: Memory | None = None) -> Tensor:
        """How much the mission decides at the next step: KL(pi(.|obs) || pi(.|other)).

        :param obs: observations as the environment shows them, tensors (B, *O) by key
        :param other: the same with other missions
        :param memory: of the steps before, as ``predict`` returns it; None: there were none
        :return: in nats, (B,); 0 where no mission is read
        """
        encoded, changed = (self.codec.encode(each, self.device) for each in (obs, other))
        memory = self._new_memory(count_rows(encoded)) if memory is None else memory
        right, wrong = (self.logits_with(memory, each)[0].log_softmax(-1) for each in (encoded, changed))
        return (right.exp() * (right - wrong)).sum(-1).clamp(min=0)  # against rounding

    # -- learning ----------------------------------------------------------------------------------------------------

    @property
    def current_learning_rate(self) -> float:
        """The step size at this point of the schedule."""
        warm = self.config.warmup_steps
        return super().current_learning_rate * (min(1.0, (self.updates + 1) / warm) if warm else 1.0)

    def _update(self, phase: str) -> dict[str, Tensor]:
        cfg = self.config
        if cfg.warmup_steps:
            self.modules.scale_learning_rates(self.current_learning_rate / cfg.learning_rate)
        return self._step(self.sample(), cfg)

    def _take_step(self, batch: Windows, cfg: TDTConfig) -> dict[str, Tensor]:
        network, generator = self.network.module, self.generators["update"]
        if cfg.shift:
            batch = replace(batch, obs=self._moved(batch.obs, cfg.shift, generator))
        keep = network.keep(len(batch.real), cfg.dropout, generator)
        loss, accuracy = self._loss(network, batch, keep, cfg.label_smoothing)
        matrices, decay = self._decay(cfg.weight_decay)
        self.network.minimise(loss)
        with torch.no_grad():
            torch._foreach_add_(matrices, decay)
        return {"loss": loss, "accuracy": accuracy}

    def _moved(self, obs: Obs, pixels: int, generator: torch.Generator) -> Obs:
        images = self.observed.images
        if isinstance(obs, Tensor):
            return shifted(obs, pixels, generator) if images else obs
        return {name: shifted(part, pixels, generator) if name in images else part for name, part in obs.items()}

    @torch.no_grad()
    def _decay(self, weight_decay: float) -> tuple[list[Tensor], list[Tensor]]:
        """:return: the weights that decay, and AdamW's part of the step, minus learning rate times decay times these"""
        linear = [part for part in self.network.module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        matrices: list[Tensor] = [part.weight for part in linear if part.weight.requires_grad]
        assert self.network.optimizer is not None
        rate = self.network.optimizer.param_groups[0]["lr"]
        return matrices, list(torch._foreach_mul(matrices, -rate * weight_decay))


def drawn(logits: Tensor, top_k: int | None, generator: torch.Generator) -> Tensor:
    """:return: actions by a softmax over logits (B, A), over the likeliest k alone where told so, (B,)"""
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
