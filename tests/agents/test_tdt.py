"""The Text Decision Transformer: what attends to what, windows, acting with memory, words, modes, transfer."""

import dataclasses
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import TDT, Dataset, TDTConfig
from headway.agents.core.config import describe
from headway.agents.presets import preset, preset_names
from headway.agents.tdt import Windows
from headway.agents.tdt.agent import cloning_loss
from headway.agents.tdt.text import HashedTable, SentenceEncoder, WordEncoder
from headway.agents.tdt.windows import shifted, trimmed
from headway.wrappers.missions import KNOWN, PAD
from stable_baselines3.common.callbacks import BaseCallback
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ERRANDS, Errand, Point, homewards_in_halves, played, recorded

MODES = TDTConfig.__annotations__["mode"].__args__
STAY, RIGHT = (torch.tensor(tokens) for tokens in ERRANDS.values())
DATA = played(env := Errand(), 40, env.asked)
SMALL: dict[str, Any] = {"context": 4, "width": 16, "layers": 2, "heads": 2, "batch_size": 16, "net_arch": [16, 16]}
SMALL |= {"device": "cpu", "seed": 0, "dropout": 0.0}
every_mode = pytest.mark.parametrize("mode", MODES)


def made(dataset: Any = DATA, **hyper: Any) -> Any:
    return TDT("MultiInputPolicy", dataset=dataset, **SMALL | hyper)


def lively(**hyper: Any) -> Any:
    """An agent whose weights are large enough for everything that is looked at to count."""
    agent, generator = made(**hyper), torch.Generator().manual_seed(0)
    for parameter in agent.network.module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return agent


def some_windows(agent: Any, rows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a network takes: windows in which all steps are real, under one of the two sentences."""
    generator = torch.Generator().manual_seed(seed)
    length = agent.config.context
    at = torch.randint(2, (rows,), generator=generator)
    missions = at.unsqueeze(1) if agent.config.mode == "tdt_task_id" else torch.stack((STAY, RIGHT))[at]
    return {
        "mission": missions,
        "states": torch.randn(rows, length, agent.config.width, generator=generator),
        "actions": torch.randint(3, (rows, length), generator=generator),
        "steps": torch.arange(length).repeat(rows, 1),
        "real": torch.ones(rows, length, dtype=torch.bool),
    }


def logits(agent: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return agent.network.module(*(inputs[name] for name in ("mission", "states", "actions", "steps", "real")))


# -- what attends to what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("step", range(4))
def test_the_future_is_not_looked_at(step: int, causal: bool) -> None:
    agent = lively(causal_text=causal)
    given = some_windows(agent)
    before = logits(agent, **given)
    states, actions = given["states"].clone(), given["actions"].clone()
    states[:, step] = -states[:, step]
    actions[:, step] = (actions[:, step] + 1) % 3
    seen = logits(agent, **given | {"states": states})
    assert torch.equal(seen[:, :step], before[:, :step])
    assert (seen[:, step:] != before[:, step:]).all(-1).all()
    done = logits(agent, **given | {"actions": actions})
    assert torch.equal(done[:, : step + 1], before[:, : step + 1])
    assert (done[:, step + 1 :] != before[:, step + 1 :]).all(-1).all()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "tdt_no_text"])
def test_the_text_is_looked_at_by_all(mode: str) -> None:
    agent = lively(mode=mode)
    given = some_windows(agent)
    other = 1 - given["mission"] if mode == "tdt_task_id" else given["mission"].flip(0)
    changed = (other != given["mission"]).any(1)
    assert changed.any()
    differ = logits(agent, **given | {"mission": other}) != logits(agent, **given)
    assert differ[changed].any(-1).all()


def test_words_attend_to_later_words_unless_told_otherwise() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    ones = [[1, 1, 1, 0, 0, 0]] * 3 + [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert made().network.module.allowed(*mask)[0, 0].int().tolist() == ones
    alone = made(mode="tdt_k1").network.module.allowed(*mask)[0, 0].int().tolist()
    assert alone == [[1, 1, 1, 0, 0, 0]] * 3 + [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 1]]
    causal = made(causal_text=True).network.module.allowed(*mask)[0, 0].int()
    assert torch.equal(causal, torch.ones(6, 6, dtype=torch.int32).tril())
    nothing = made().network.module.allowed(mask[0] & False, mask[1] & False)[0, 0].int()
    assert torch.equal(nothing, torch.eye(6, dtype=torch.int32))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("tdt_k1", "bc_mlp")])
def test_padding_changes_nothing(mode: str) -> None:
    agent = lively(mode=mode, step_embedding=9)
    given = some_windows(agent)
    real = given["real"].clone()
    real[:, :2] = False
    short = {**given, "real": real}
    before = logits(agent, **short)[:, 2:]
    assert not torch.allclose(before, logits(agent, **given)[:, 2:], atol=1e-5)  # they would have counted
    for name, change in (("states", 3.0), ("steps", 7)):
        changed = given[name].clone()
        changed[:, :2] += change
        assert torch.allclose(logits(agent, **short | {name: changed})[:, 2:], before, atol=1e-5)
    actions = given["actions"].clone()
    actions[:, :2] = 3
    assert torch.allclose(logits(agent, **short | {"actions": actions})[:, 2:], before, atol=1e-5)


@pytest.mark.parametrize("mode", ["tdt", "tdt_k1", "tdt_sentence_token", "bc_text", "bc_mlp"])
def test_padding_words_change_nothing(mode: str) -> None:
    agent = lively(mode=mode)
    given = some_windows(agent) | {"mission": STAY.expand(5, 5)}
    assert torch.allclose(
        logits(agent, **given | {"mission": STAY[:3].expand(5, 3)}), logits(agent, **given), atol=1e-5
    )
    silent = given | {"mission": torch.full((5, 5), PAD)}
    assert logits(agent, **silent).isfinite().all()
    if mode == "tdt":
        assert torch.allclose(logits(lively(mode="tdt_no_text"), **given), logits(agent, **silent), atol=1e-5)


def test_padded_steps_have_no_gradient() -> None:
    agent = lively()
    given = some_windows(agent)
    given["real"][:, :2] = False
    given["states"].requires_grad_()
    out = agent.network.module(*(given[name] for name in ("mission", "states", "actions", "steps", "real")))
    out[:, 2:].square().sum().backward()
    assert not given["states"].grad[:, :2].any()
    assert given["states"].grad[:, 2:].all(-1).all()


# -- losses ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_a_mean_over_real_steps() -> None:
    agent = made().learn(5)
    batch, network = agent.sample(5), agent.network.module
    assert not batch.real.all()
    with torch.no_grad():
        states = network.encode_windows(batch.obs)
        log_probs = network(batch.mission, states, batch.actions, batch.steps, batch.real).log_softmax(-1)
        losses, smooth, right = [], [], []
        for row, step in batch.real.nonzero().tolist():
            chosen = log_probs[row, step]
            losses.append(-chosen[batch.actions[row, step]])
            smooth.append(0.8 * losses[-1] - 0.2 * chosen.mean())
            right.append(float(chosen.argmax() == batch.actions[row, step]))
        plain, accuracy = cloning_loss(network, batch, None, 0.0)
        smoothed, _ = cloning_loss(network, batch, None, 0.2)
    assert torch.allclose(plain, torch.stack(losses).mean(), atol=1e-6)
    assert torch.allclose(smoothed, torch.stack(smooth).mean(), atol=1e-6)
    assert accuracy == pytest.approx(np.mean(right))


def test_one_step_is_adamws_on_matrices() -> None:
    agent, twin = (made(learning_rate=1e-2, weight_decay=0.5, learning_rate_schedule="constant") for _ in range(2))
    network, batch = twin.network.module, twin.sample()
    cloning_loss(network, batch, None, 0.0)[0].backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    tables = {id(part.weight) for part in network.modules() if isinstance(part, torch.nn.Embedding)}
    named = dict(network.named_parameters())
    decays = [p for n, p in named.items() if n.endswith("weight") and p.dim() > 1 and id(p) not in tables]
    others = [p for p in named.values() if not any(p is other for other in decays)]
    groups = [{"params": decays, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)).step()
    agent.learn(1)
    for name, parameter in agent.network.module.named_parameters():
        assert torch.allclose(parameter, named[name], atol=1e-6), name


def test_dropout_draws_from_the_agents_own_stream() -> None:
    one, other, none = made(dropout=0.3), made(dropout=0.3), made()
    for agent, seed in ((one, 1), (other, 2), (none, 3)):
        torch.manual_seed(seed)
        agent.learn(10)
    for name, tensor in one.modules.state().items():
        assert torch.equal(tensor, other.modules.state()[name]), name
    assert any(not torch.equal(t, none.modules.state()[name]) for name, t in one.modules.state().items())
    keep = one.network.module.keep(400, 0.3, torch.Generator().manual_seed(0))
    assert keep.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert keep.mean() == pytest.approx(1, abs=0.01)
    obs = {key: part[:3].numpy() for key, part in DATA.obs.items()}
    first, _ = one.predict(obs, deterministic=True)
    assert all((one.predict(obs, deterministic=True)[0] == first).all() for _ in range(5))


class NothingWaits(TorchDispatchMode):
    """Refuses what would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select")), func
        return func(*args, **(kwargs or {}))


@every_mode
def test_an_update_waits_for_nothing(mode: str) -> None:
    agent = made(mode=mode, dropout=0.1, step_embedding=5)
    network, batch = agent.network.module, agent.sample()
    with NothingWaits():
        keep = network.keep(len(batch.real), 0.1, agent.generators["update"])
        loss, _ = cloning_loss(network, batch, keep, 0.1)
        shifted(torch.zeros(2, 3, 1, 9, 9, dtype=torch.uint8), 2, agent.generators["update"])
        torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


class Rates(BaseCallback):
    """Keeps the learning rate of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def _on_step(self) -> bool:
        self.rates.append(self.model.network.optimizer.param_groups[0]["lr"])  # type: ignore[attr-defined]
        return True


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_learning_rate_never_rises_after_warm_up(warmup: int) -> None:
    agent, seen = made(warmup_steps=warmup, learning_rate=1e-3), Rates()
    agent.learn(60, seen)
    agent.train(5)  # beyond the end
    seen.on_step()
    rates = seen.rates[1:]  # that of each update is read before the next one
    assert all(a < b for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)
    assert rates[0] == pytest.approx(1e-4 if warmup else 1e-3, rel=0.01)


def test_it_begins_at_chance_and_learns_by_heart() -> None:
    data = recorded(moves="discrete", lengths=(5, 3))  # eight windows, and actions as they came
    agent = made(data, learning_rate=3e-3, learning_rate_schedule="constant", weight_decay=0.0)
    batch = agent.sample(64)

    def loss() -> float:
        with torch.no_grad():
            return float(cloning_loss(agent.network.module, batch, None, 0.0)[0])

    assert loss() == pytest.approx(math.log(5), abs=0.05)
    agent.learn(200)
    assert loss() < 0.05


# -- windows -----------------------------------------------------------------------------------------------------------


def numbered(lengths: tuple[int, ...] = (6, 1, 3, 9)) -> Dataset:
    """Episodes whose places are 10 times their number plus the step, with a mission each."""
    length = torch.tensor(lengths)
    episode = torch.repeat_interleave(torch.arange(len(lengths)), length)
    step = torch.cat([torch.arange(n) for n in lengths])
    tokens = 3 + episode.unsqueeze(1).repeat(1, 5)
    place = (10.0 * episode + step).unsqueeze(1)
    space = Errand(("place", "mission_tokens")).observation_space
    return Dataset(
        observation_space=space,
        action_space=spaces.Discrete(9),
        obs={"place": place, "mission_tokens": tokens},
        final_obs={"place": place[:4], "mission_tokens": tokens[:4]},
        actions=step,
        rewards=episode.double(),
        lengths=length,
        terminated=torch.tensor([True, False, True, False]),
    )


def test_words_that_all_lack_are_left_out() -> None:
    assert made().data.mission.shape[1] == 4  # of five
    silent = numbered()
    silent.obs["mission_tokens"][:] = PAD
    assert made(silent).learn(2).data.mission.shape[1] == 0
    assert trimmed(torch.tensor([[0, 3, 0, 0], [0, 0, 0, 0]])).tolist() == [[0, 3], [0, 0]]


def test_windows_lie_in_one_episode_and_reach_its_end() -> None:
    agent = made(numbered())
    batch = agent.sample(500)
    ends = set()
    for row in range(500):
        real = batch.real[row]
        places = batch.obs[row, real, 0]
        episode, last = divmod(int(places[-1]), 10)
        count = min(last + 1, 4)
        assert places.tolist() == [10 * episode + last - back for back in range(count - 1, -1, -1)]
        assert real.tolist() == [False] * (4 - count) + [True] * count  # filled up on the left
        assert batch.mission[row].tolist() == [3 + episode] * 5
        assert batch.steps[row, real].tolist() == batch.actions[row, real].tolist() == (places % 10).int().tolist()
        assert (batch.actions[row, ~real] == 9).all()
        ends.add((episode, last))
    assert len(ends) == 19  # of every step of every episode, its last one included


@pytest.mark.parametrize("mode", ["tdt_k1", "bc_mlp"])
def test_where_one_step_is_looked_at_each_is_by_itself(mode: str) -> None:
    agent = lively(mode=mode)
    given = some_windows(agent)
    together = logits(agent, **given)
    for step in range(4):
        alone = {name: part if name == "mission" else part[:, step : step + 1] for name, part in given.items()}
        assert torch.allclose(logits(agent, **alone)[:, 0], together[:, step], atol=1e-5)


def test_images_are_shifted_by_windows() -> None:
    images = torch.zeros(50, 3, 2, 9, 9, dtype=torch.uint8)
    images[..., 4, 4] = 200
    moved = shifted(images, 3, torch.Generator().manual_seed(0))
    assert moved.dtype is torch.uint8
    places = moved.nonzero().view(50, 6, 5)
    assert (places[:, :, 3:] == places[:, :1, 3:]).all()
    offsets = places[:, 0, 3:] - 4
    assert offsets.unique().tolist() == [*range(-3, 4)]
    assert moved.sum() == images.sum()
    corner = torch.full((50, 1, 1, 9, 9), 7, dtype=torch.uint8)
    assert (shifted(corner, 3, torch.Generator()) == 0).any()


def test_images_are_learnt_from() -> None:
    data = played(env := Errand(("image", "mission_tokens")), 6, env.asked)
    still, moved = (made(data, shift=pixels, batch_size=4).learn(2) for pixels in (0, 4))
    assert any(not torch.equal(t, moved.modules.state()[name]) for name, t in still.modules.state().items())


# -- acting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step_embedding", [0, 6])
def test_acting_sees_what_training_sees(mode: str, step_embedding: int) -> None:
    """Three rows, of which some begin episodes in the midst: logits equal those of windows of what was recorded."""
    agent = lively(mode=mode, step_embedding=step_embedding)
    network, seen = agent.network.module, []
    rng = np.random.default_rng(0)
    begins = np.zeros((12, 3), bool)
    begins[0] = begins[5, 1] = begins[2, 2] = begins[9, 2] = True
    handle = network.register_forward_hook(lambda *call: seen.append(call[2][:, -1]))
    state, places, tasks, actions, given = None, [], np.zeros(3, int), [], []
    for start in begins:
        tasks = np.where(start, rng.integers(2, size=3), tasks)
        places.append(rng.normal(size=(3, 1)).astype(np.float32))
        tokens = np.stack([list(ERRANDS.values())[task] for task in tasks])
        obs = {"place": places[-1], "mission_tokens": tokens, "mission_task": tasks.copy()}
        chosen, state = agent.predict(obs, state, start)
        actions.append(chosen)
        given.append(torch.tensor(tasks).unsqueeze(1) if mode == "tdt_task_id" else torch.tensor(tokens))
    handle.remove()
    length, moves, place = agent.config.window, np.stack(actions), torch.tensor(np.stack(places))
    with torch.no_grad():
        for t in range(12):
            for row in range(3):
                first = int(np.flatnonzero(begins[: t + 1, row])[-1])
                at = torch.arange(t - length + 1, t + 1)
                real = at >= first
                at = at.clamp(min=first)
                out = network(
                    given[t][row : row + 1],
                    network.encode(place[at, row]).unsqueeze(0),
                    torch.tensor(moves[at, row]).where(real, 3).unsqueeze(0),
                    (at - first).unsqueeze(0),
                    real.unsqueeze(0),
                )
                assert torch.allclose(out[0, -1], seen[t][row], atol=1e-5), (t, row)


def test_it_draws_among_the_likeliest() -> None:
    data = played(Errand(), 30)  # any actions
    two, every = (made(data, top_k=k, learning_rate=1e-4).learn(5) for k in (2, None))
    obs = {key: part[:1].expand(300, *part.shape[1:]).numpy() for key, part in data.obs.items()}
    assert len(set(two.predict(obs)[0].tolist())) == 2
    assert len(set(every.predict(obs)[0].tolist())) == 3
    assert len(set(two.predict(obs, deterministic=True)[0].tolist())) == 1


# -- text --------------------------------------------------------------------------------------------------------------


def test_swapping_sentences_swaps_behaviour() -> None:
    agent, silent = (made(mode=mode, learning_rate=3e-3).learn(120) for mode in ("tdt", "tdt_no_text"))
    place = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    for tokens, action in zip(ERRANDS.values(), (0, 1), strict=True):
        state = None
        for _ in range(6):
            obs = {"place": place, "mission_tokens": np.tile(tokens, (9, 1)), "mission_task": np.zeros(9, int)}
            chosen, state = agent.predict(obs, state, deterministic=True)
            assert (chosen == action).all()
    windows = agent.sample(40)
    wrong = torch.where(windows.mission[:, 1:2] == STAY[1], RIGHT, STAY)
    assert silent.text_sensitivity(silent.sample(40), STAY) == 0
    assert agent.text_sensitivity(windows, wrong) > 1
    assert agent.text_sensitivity(windows, windows.mission) == 0


def test_text_sensitivity_is_a_mean_of_divergences() -> None:
    agent = lively(mode="bc_text")
    windows: Windows = agent.sample(6)
    assert not windows.real.all()
    with torch.no_grad():
        states = agent.network.module.encode_windows(windows.obs)
        rest = (states, windows.actions, windows.steps, windows.real)
        right, wrong = (
            torch.distributions.Categorical(logits=agent.network.module(mission, *rest))
            for mission in (windows.mission, STAY.expand(6, 5))
        )
        expected = torch.distributions.kl_divergence(right, wrong)[windows.real].mean()
    assert agent.text_sensitivity(windows, STAY) == pytest.approx(float(expected), rel=1e-4)


PLACES = """
import torch
from headway.agents.tdt.text import HashedTable
print(HashedTable(256, 4, 3).places(torch.arange(4096, 4196) * 7919 % 2**24).tolist())
"""


def test_hashes_are_the_same_in_every_process() -> None:
    own = HashedTable(256, 4, 3).places(torch.arange(4096, 4196) * 7919 % 2**24).tolist()
    other = subprocess.run([sys.executable, "-c", PLACES], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(own)
    assert own[0] != own[1]


def test_several_hashes_tell_words_apart() -> None:
    words = KNOWN + torch.randint(2**24, (500,), generator=torch.Generator().manual_seed(0))
    alike = {}
    for hashes in (1, 2, 3):
        rows = HashedTable(256, 4, hashes).places(words).sort(-1).values
        assert rows.unique().numel() > 200  # of 256, and none beyond
        assert rows.max() < 256
        alike[hashes] = 500 - len(rows.unique(dim=0))
    assert alike[1] > 250
    assert alike[2] < 10
    assert alike[3] == 0


def test_words_without_a_row_are_hashed() -> None:
    encoder = WordEncoder(10, 4, 8, 3, 256)
    vectors, words = encoder(torch.tensor([[3, 10, 4095, KNOWN + 2**24 - 1]]))
    assert torch.equal(vectors[0, 0], encoder.known.weight[3])
    assert torch.equal(vectors[0, 1:], encoder.others(torch.tensor([10, 4095, KNOWN + 2**24 - 1])))
    assert words.all()
    assert len(vectors[0].unique(dim=0)) == 4
    agent = made()
    assert agent.config.vocabulary == 6
    obs = {key: part[:2].numpy() for key, part in DATA.obs.items()}
    for unseen in (6, 4095, KNOWN, KNOWN + 2**24 - 1):
        obs["mission_tokens"] = np.full((2, 5), unseen)
        agent.predict(obs)


def test_the_vocabulary_counts_known_words_of_the_data() -> None:
    data = numbered()
    data.obs["mission_tokens"][3:, 2] = KNOWN + 99
    assert made(data).config.vocabulary == 7
    assert made(data, vocabulary=50).network.module.text.known.num_embeddings == 50
    assert made(data, mode="tdt_sentence_token").config.vocabulary is None


def test_sentences_are_read_as_a_whole() -> None:
    encoder = SentenceEncoder(5, 8, 3, 256)
    sentences = torch.tensor([[1, 3, 4, 2, 0], [1, 4, 3, 2, 0], [1, 3, 4, 2, 2], [0, 0, 0, 0, 0]])
    vectors, words = encoder(sentences)
    assert vectors.shape == (4, 1, 8)
    assert words.tolist() == [[True], [True], [True], [False]]
    assert len(vectors[:3, 0].unique(dim=0)) == 3
    assert torch.equal(encoder(sentences[:1, :4])[0], vectors[:1])


# -- modes -------------------------------------------------------------------------------------------------------------


@every_mode
def test_every_mode_learns_and_survives_its_file(mode: str, tmp_path: Path) -> None:
    agent = made(mode=mode, learning_rate=3e-3, normalize_obs=True).learn(150)
    obs = {key: part[:200].numpy() for key, part in DATA.obs.items()}
    chosen, state = agent.predict(obs, deterministic=True)
    right = (chosen == DATA.actions[:200].numpy()).mean()
    assert right < 0.9 if mode == "tdt_no_text" else right == 1
    agent.save(tmp_path / "a")
    loaded: Any = TDT.load(tmp_path / "a")
    assert loaded.config == agent.config
    again, after = loaded.predict(obs, deterministic=True)
    assert (again == chosen).all()
    assert all(torch.equal(state[name], after[name]) for name in state)


def count(agent: Any) -> int:
    return sum(parameter.numel() for parameter in agent.network.module.parameters())


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_modes_have_as_many_parameters(name: str) -> None:
    sizes = preset("tdt", name, TDTConfig) | {"device": "cpu", "seed": 0}
    counts = {mode: count(TDT("MultiInputPolicy", dataset=DATA, mode=mode, **sizes)) for mode in MODES}
    assert counts["bc_text"] == pytest.approx(counts["tdt"], rel=0.05)
    assert counts["bc_mlp"] == pytest.approx(counts["tdt"], rel=0.1)
    assert counts["tdt_no_text"] == counts["tdt"]


def test_presets() -> None:
    assert preset_names("tdt") == ["default", "cpu", "paper"]
    assert preset("tdt", "default", TDTConfig) == preset("tdt", "cpu", TDTConfig) == {}
    assert (TDTConfig().context, TDTConfig().width, TDTConfig().layers, TDTConfig().heads) == (10, 64, 3, 4)


def test_the_number_of_a_task_may_be_an_integer() -> None:
    agents = []
    for key in ("mission_task", "mission_number"):
        data = played(env := Errand((key, "place")), 20, env.asked)
        agents.append(made(data, mode="tdt_task_id").learn(5))
    assert torch.equal(agents[0].data.mission, agents[1].data.mission)
    assert torch.equal(agents[0].data.obs, agents[1].data.obs)
    for name, tensor in agents[0].modules.state().items():
        assert torch.equal(tensor, agents[1].modules.state()[name]), name


def test_only_the_state_is_standardised() -> None:
    agent = made(normalize_obs=True)
    features = agent.network.module.encoder[0]
    assert torch.allclose(features.mean, DATA.obs["place"].mean(0))
    assert torch.allclose(features.std, DATA.obs["place"].std(0, correction=0))


def test_the_best_episodes_of_each_mission_are_kept() -> None:
    data = played(env := Errand(), 60, env.seldom_asked)
    firsts = data.lengths.cumsum(0) - data.lengths
    task = data.obs["mission_task"][firsts]
    for dataset in (data, without(data, "mission_task")):
        kept = made(dataset, keep_best=0.25).dataset
        starts = kept.lengths.cumsum(0) - kept.lengths
        words = kept.obs["mission_tokens"][starts]
        for number, tokens in enumerate((STAY, RIGHT)):
            returns = data.returns[task == number].sort(descending=True).values
            best = kept.returns[(words == tokens).all(1)].sort(descending=True).values
            assert best.tolist() == returns[: int(0.25 * len(returns))].tolist()
    plain = played(Point(moves="discrete"), 8, homewards_in_halves)
    assert made(plain, keep_best=0.5).dataset.returns.min() >= plain.returns.median()


def without(data: Dataset, *keys: str) -> Dataset:
    """A data set whose observations lack some keys."""
    space: Any = data.observation_space
    left = spaces.Dict({key: part for key, part in space.items() if key not in keys})
    obs, final_obs = ({key: part for key, part in o.items() if key not in keys} for o in (data.obs, data.final_obs))
    return dataclasses.replace(data, observation_space=left, obs=obs, final_obs=final_obs)


# -- transfer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["encoder", "all", "all_but_text"])
@pytest.mark.parametrize("by_file", [False, True])
def test_transfer_copies_what_it_says(scope: Any, by_file: bool, tmp_path: Path) -> None:
    source, agent = made(mode="tdt_no_text").learn(5), made(seed=1).learn(3)
    source.save(tmp_path / "a.zip")
    before = {name: tensor.clone() for name, tensor in agent.network.module.state_dict().items()}
    agent.transfer(tmp_path / "a.zip" if by_file else source, scope)
    theirs = source.network.module.state_dict()
    for name, tensor in agent.network.module.state_dict().items():
        taken = {
            "encoder": name.startswith("encoder"),
            "all": True,
            "all_but_text": not name.startswith("text"),
        }[scope]
        assert torch.equal(tensor, theirs[name] if taken else before[name]), name
    assert not any(tensor.any() for name, tensor in agent.modules.state().items() if ".optimizer." in name)
    agent.learn(2)
    assert torch.equal(source.network.module.state_dict()["norm.weight"], theirs["norm.weight"])


def test_it_starts_from_another_one(tmp_path: Path) -> None:
    source = made(mode="tdt_no_text").learn(5)
    source.save(tmp_path / "a.zip")
    agents = [made(seed=1, transfer_scope="encoder", start_from=start) for start in (source, tmp_path / "a.zip")]
    other = made(seed=1)
    other.transfer(source, "encoder")
    for agent in agents:
        assert agent.network.module.state_dict().keys() == other.network.module.state_dict().keys()
        for name, tensor in agent.network.module.state_dict().items():
            assert torch.equal(tensor, other.network.module.state_dict()[name]), name
    agents[1].learn(3)
    agents[1].save_checkpoint(tmp_path / "kept")
    (tmp_path / "a.zip").unlink()  # which is not needed any more
    resumed: Any = TDT.resume(tmp_path / "kept", dataset=DATA)
    for name, tensor in agents[1].modules.state().items():
        assert torch.equal(resumed.modules.state()[name], tensor), name


def test_transfer_fits_or_changes_nothing() -> None:
    agent, wider = made(), made(vocabulary=30)
    before = {name: tensor.clone() for name, tensor in agent.network.module.state_dict().items()}
    with pytest.raises(ValueError, match=r"text.known.weight, which is \(30, 16\) there and \(6, 16\) here: .*vocabu"):
        agent.transfer(wider)
    with pytest.raises(ValueError, match="there and missing here"):
        agent.transfer(made(mode="bc_text"), "all_but_text")
    with pytest.raises(ValueError, match="scope must be one of encoder, all, all_but_text, got 'text'"):
        agent.transfer(wider, "text")
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.network.module.state_dict().items())
    agent.transfer(wider, "all_but_text")
    agent.transfer(made(mode="tdt_task_id"), "all_but_text")


@pytest.mark.parametrize("part", ["encoder", "text"])
def test_what_is_frozen_stays(part: str) -> None:
    agent = made(freeze=part)
    before = {name: tensor.clone() for name, tensor in agent.network.module.state_dict().items()}
    agent.learn(10)
    for name, tensor in agent.network.module.state_dict().items():
        stays = name.startswith(f"{part}.") or name.startswith("text.others")  # of which no word of the data is
        assert torch.equal(tensor, before[name]) == stays, name


# -- bad input ---------------------------------------------------------------------------------------------------------


def with_task(value: int) -> Dataset:
    data = played(env := Errand(("place", "mission_tokens", "mission_number")), 3, env.asked)
    data.obs["mission_task"][2] = value
    return data


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no words": (without(DATA, "mission_tokens"), {"mode": "bc_text"}, "'bc_text' reads an instruction, and obs"),
    "no words, whole": (without(DATA, "mission_tokens"), {"mode": "tdt_sentence_token"}, "have no 'mission_tokens'"),
    "no task": (without(DATA, "mission_task"), {"mode": "tdt_task_id"}, "have no 'mission_task': record it"),
    "mode": (DATA, {"mode": "tdt_2"}, "TDTConfig.mode must be"),
    "width": (DATA, {"width": 15}, "TDTConfig.width must be a multiple of heads, 2, got 15"),
    "frozen": (DATA, {"mode": "tdt_no_text", "freeze": "text"}, "freeze='text' freezes nothing: mode='tdt_no_text'"),
    "frozen nothing": (without(DATA, "mission_tokens"), {"freeze": "text"}, "reads no text in these observations"),
    "task": (with_task(2), {"mode": "tdt_task_id"}, r"mission_task must lie in \[0, 1\], .* got 2"),
    "task below": (with_task(-1), {"mode": "tdt_task_id"}, r"mission_task must lie in \[0, 1\], .* got -1"),
    "seeds": (DATA, {"seeds": [0, 1]}, "TDT trains one seed at a time"),
    "nothing to see": (without(DATA, "place"), {}, "observations need something besides the mission"),
    "actions": (played(Point(), 2), {}, "TDT needs a Discrete action space, got Box"),
    "images": (
        played(env := Errand(("image", "mission_tokens")), 2, env.asked),
        {"normalize_obs": True},
        "normalize_obs scales vectors",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    data, hyper, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        made(data, **hyper)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "space", "message"),
    [
        ("mission_tokens", spaces.Box(0.0, 1.0, (5,)), "mission_tokens must be a Box of integers"),
        ("mission_tokens", spaces.Box(0, 9, (5, 2), np.int64), "mission_tokens must be a Box of integers"),
        ("mission_task", spaces.Box(0.0, 1.0, ()), "mission_task must be a Discrete, or one integer"),
        ("mission_task", spaces.Box(0, 2**40, (), np.int64), "one integer of at most 65536 values"),
    ],
)
def test_missions_of_another_form(key: str, space: Any, message: str) -> None:
    env = Errand(("place", "mission_tokens", "mission_number"))
    data = played(env, 2, env.asked)
    kind = torch.float32 if space.dtype == np.float32 else torch.int64

    def other(obs: Any) -> Any:
        return {**obs, key: torch.zeros(len(obs[key]), *space.shape, dtype=kind)}

    changed = spaces.Dict({**env.observation_space.spaces, key: space})
    data = dataclasses.replace(data, observation_space=changed, obs=other(data.obs), final_obs=other(data.final_obs))
    with pytest.raises(ValueError, match=message):
        made(data)


def test_images_of_another_size() -> None:
    data = played(env := Errand(("image", "mission_tokens")), 2, env.asked)
    agent = made(data)
    obs = {"image": np.zeros((2, 40, 40, 1), np.uint8), "mission_tokens": np.tile(STAY.numpy(), (2, 1))}
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        agent.predict(obs)


def test_fields_have_their_documentation() -> None:
    assert all(info.doc for info in describe(TDTConfig).values())
    assert "gamma" not in describe(TDTConfig)
