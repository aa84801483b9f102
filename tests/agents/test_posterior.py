"""That samples of what might be true explore, on tables: a chain, where a mean does not, and a bandit."""

from typing import Literal

import numpy as np
import pytest
import torch
from headway.agents.mbpo import keep_weights
from headway.agents.mbpo.acting import Acting, Counted
from headway.envs.sparse import ChainBatch
from torch import Tensor

CPU = torch.device("cpu")


# -- a chain ---------------------------------------------------------------------------------------------------------

LENGTH, MODELS, RUNS, EPISODES = 10, 10, 30, 100


def plans(rewards: Tensor, following: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Actions by step and state (H, R, K, S), and values of the first state (R, K), of models by their tables."""
    value, actions = torch.zeros(*rewards.shape[:3]), []
    for _ in range(horizon):
        later = value.gather(2, following.flatten(2)).view_as(rewards)
        value, best = (rewards + later).max(-1)
        actions.append(best)
    return torch.stack(actions[::-1]), value[..., 0]


def first_arrivals(how: Literal["mean", "ps", "ops"]) -> Tensor:
    """The episode in which each run first reaches the far end; inf: none of them."""
    generator = torch.Generator().manual_seed(0)
    env, acting = ChainBatch(RUNS, length=LENGTH), Acting(MODELS, RUNS, LENGTH, CPU)
    tables = (RUNS, MODELS, LENGTH, 2)
    prior = torch.randn(*tables, 1 + LENGTH, generator=generator)  # of rewards and next states, worth one row each
    sums, counts = prior.clone(), torch.ones(tables)
    arrived, run = torch.full((RUNS,), torch.inf), torch.arange(RUNS)
    for episode in range(1, EPISODES + 1):
        if arrived.isfinite().all():
            break
        means = sums / counts.unsqueeze(-1)
        if how == "mean":
            means = means.mean(1, keepdim=True)
        planned, values = plans(means[..., 0], means[..., 1:].argmax(-1), env.horizon)
        obs, _ = env.reset()
        acting.end_episodes(True)
        acting.begin_episodes(obs, False, generator)
        who = {"mean": torch.zeros_like(run), "ps": acting.drawn, "ops": values.argmax(1)}[how]
        place = torch.zeros_like(run)
        for step in range(env.horizon):
            action = planned[step, run, who, place]
            _, rewards, _, _, info = env.step(2.0 * action.unsqueeze(1) - 1)
            led_to = info["final_obs"]
            counted = keep_weights(RUNS, MODELS, generator).float()  # (R, K)
            counts[run, :, place, action] += counted
            sums[run, :, place, action] += counted.unsqueeze(2) * torch.cat((rewards.unsqueeze(1), led_to), 1)[:, None]
            place = led_to.argmax(1)
            arrived = torch.where((place == LENGTH - 1) & arrived.isinf(), episode, arrived)
    return arrived


def test_samples_get_to_the_end_of_a_chain_and_their_mean_does_not() -> None:
    """Specified: the mean arrives in at most 10 of 30 runs, samples in 27, the best of samples no later than any."""
    mean, ps, ops = (first_arrivals(how) for how in ("mean", "ps", "ops"))
    assert int(mean.isfinite().sum()) <= 10
    assert int(ps.isfinite().sum()) >= 27
    assert ops.median() <= ps.median()


# -- a bandit --------------------------------------------------------------------------------------------------------

ARMS, PULLS, SEEDS = 10, 500, 200


def regret(agents_per_model: int, knows_data: bool, models: int = 5) -> float:
    """Mean regret of who pulls the best arm of a sample, of which the models have collapsed.

    All models are the mean of the data, from one start that they share, and differ by a tenth of what the data leave
    open. An agent that knows data besides counts each pull as often as was drawn for it, once.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(SEEDS, ARMS, generator=generator)
    agents, seed = models * agents_per_model, torch.arange(SEEDS)
    acting = Acting(agents, SEEDS, 1, CPU)
    spread = torch.randn(SEEDS, models, ARMS, generator=generator).repeat_interleave(agents_per_model, 1)
    start = torch.randn(SEEDS, agents, ARMS, generator=generator)
    pulls, sums = torch.ones(SEEDS, ARMS), torch.zeros(SEEDS, ARMS)
    own_pulls, own_sums = torch.ones(SEEDS, agents, ARMS), start.clone()
    lost = torch.zeros(SEEDS)
    for _ in range(PULLS):
        acting.end_episodes(True)
        acting.begin_episodes(torch.zeros(SEEDS, 1), False, generator)
        known = (sums / pulls).unsqueeze(1) + 0.1 * spread / pulls.sqrt().unsqueeze(1)
        if knows_data:
            known = own_sums / own_pulls
        arm = known[seed, acting.drawn].argmax(1)
        reward = truth[seed, arm] + torch.randn(SEEDS, generator=generator)
        lost += truth.amax(1) - truth[seed, arm]
        pulls[seed, arm] += 1
        sums[seed, arm] += reward
        counted = keep_weights(SEEDS, agents, generator).float()
        own_pulls[seed, :, arm] += counted
        own_sums[seed, :, arm] += counted * reward.unsqueeze(1)
    return float(lost.mean())


def test_agents_that_know_data_besides_make_up_for_models_that_have_collapsed() -> None:
    """Specified: of five models, policies that follow from them alone lose at least 1.5 times as much."""
    alone, one, five = regret(1, False), regret(1, True), regret(5, True)
    assert alone / one >= 1.5
    assert alone / five > alone / one


# -- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_an_agent_stays_until_its_episode_ends(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    acting = Acting(4, rows, 2, CPU)
    seen = []
    for step in range(400):
        acting.begin_episodes(torch.full((rows, 2), float(step)), False, generator)
        seen.append(acting.drawn.clone())
        acting.end_episodes(np.arange(rows) == step % (2 * rows))
    drawn = torch.stack(seen)
    for row in range(rows):
        for step in range(1, 400):
            ended = (step - 1) % (2 * rows) == row
            assert ended or drawn[step, row] == drawn[step - 1, row]
    assert len(acting.starts) == rows + sum(step % (2 * rows) < rows for step in range(399))
    assert acting.starts[-1].tolist() == [399.0, 399.0]


def test_real_rows_come_by_their_counts() -> None:
    counts = torch.tensor([[0, 2], [1, 0], [3, 1], [0, 0]])
    drawn = Counted(torch.tensor([10, 11, 12, 13]), counts.cumsum(0).T.contiguous())
    shares = (torch.arange(1200) + 0.5).expand(2, 1200) / 1200
    found = drawn.draw(shares)
    assert [torch.bincount(row, minlength=14)[10:].tolist() for row in found] == [[0, 300, 900, 0], [800, 0, 400, 0]]
