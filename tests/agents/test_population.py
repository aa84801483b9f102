"""Populations as one matrix: views of it, members one by one, whole episodes that depend on no number of rows."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents.core.nets import DeterministicActor
from headway.agents.core.spaces import ObservationCodec, actions_of
from headway.agents.core.spaces.observations import ImageFeatures, NumberFeatures, VectorFeatures
from headway.agents.pgps import CEMSearch, Population, evaluate, flatten, unflatten
from headway.envs import make_batched
from headway.wrappers import as_batched
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from toys import PLACE, Point

O, A, HIDDEN = 5, 2, (16, 8)  # noqa: E741 (the field's name)


def actor(seed: int = 0, inputs: int = O, outputs: int = A) -> DeterministicActor:
    torch.manual_seed(seed)
    return DeterministicActor(VectorFeatures(inputs), outputs, HIDDEN, activation="elu")


def members(count: int, inputs: int = O, outputs: int = A) -> Tensor:
    return torch.stack([flatten(actor(seed, inputs, outputs)) for seed in range(count)])


def test_there_and_back_is_the_identity() -> None:
    one, other = actor(0), actor(1)
    vector = flatten(one)
    assert vector.shape == (O * 16 + 16 * 8 + 8 * A + 16 + 8 + A,)
    unflatten(vector, other)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert torch.equal(flatten(other), vector)
    with pytest.raises(ValueError, match=r"the network has 250 weights, got a vector of shape \(3,\)"):
        unflatten(torch.zeros(3), other)


def test_members_act_as_their_networks_do() -> None:
    population, obs = Population(actor(9), members(6)), torch.randn(6, 3, O)
    acted = population.act(obs.flatten(0, 1)).view(6, 3, A)
    for seed in range(6):
        torch.testing.assert_close(acted[seed], actor(seed).mode(obs[seed]), atol=1e-6, rtol=0)
    order = torch.randperm(6)
    shuffled = Population(actor(9), population.members[order])
    torch.testing.assert_close(shuffled.act(obs[order].flatten(0, 1)).view(6, 3, A), acted[order], atol=1e-6, rtol=0)


def products_are_the_same_alone() -> bool:
    """:return: whether a stack's products are those of a part of it, to a bit: MKL's on an AMD EPYC are not"""
    generator = torch.Generator().manual_seed(0)
    for inputs, outputs in ((401, 13), (40, 30)):
        obs, weights, bias = (
            torch.randn(7, *shape, generator=generator) for shape in ((1, inputs), (inputs, outputs), (1, outputs))
        )
        whole = torch.baddbmm(bias, obs, weights)
        for part in (slice(0, 3), slice(3, 7), slice(4, 5)):
            if not torch.equal(torch.baddbmm(bias[part], obs[part], weights[part]), whole[part]):
                return False
    return True


@pytest.mark.skipif(not products_are_the_same_alone(), reason="this processor's products depend on the stack's size")
@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize(("inputs", "outputs", "hidden"), [(5, 2, (16, 8)), (1, 1, (401, 13)), (17, 6, (40, 30))])
@pytest.mark.parametrize("each", [1, 2])
def test_who_acts_beside_a_member_does_not_matter_to_a_bit(
    activation: Any, inputs: int, outputs: int, hidden: tuple[int, ...], each: int
) -> None:
    torch.manual_seed(0)
    single = DeterministicActor(VectorFeatures(inputs), outputs, hidden, activation=activation)
    whole = Population(single, 0.3 * torch.randn(7, len(flatten(single))))
    for obs in torch.randn(10, 7 * each, inputs):
        acted = whole.act(obs)
        for first, last in ((0, 3), (3, 7), (4, 5), (0, 6)):
            rows = slice(first * each, last * each)
            part = Population(single, whole.members[first:last].clone(), of_many=True)
            assert torch.equal(part.act(obs[rows]), acted[rows])
            assert torch.equal(whole.of(torch.arange(7 * each)[rows], each).act(obs[rows]), acted[rows])


def test_members_read_integers_each_its_own() -> None:
    torch.manual_seed(0)
    single = DeterministicActor(NumberFeatures(2), 1, (8,))
    population, obs = Population(single, torch.randn(3, len(flatten(single)))), torch.randint(9, (6, 2))
    for row, acted in enumerate(population.act(obs)):
        unflatten(population.members[row // 2], single)
        torch.testing.assert_close(acted, single.mode(obs[row : row + 1])[0], atol=1e-6, rtol=0)


def test_layers_are_views_of_the_matrix() -> None:
    matrix = members(4)
    population, obs = Population(actor(9), matrix), torch.randn(4, O)
    matrix[2] = flatten(actor(7))
    torch.testing.assert_close(population.act(obs)[2], actor(7).mode(obs[2:3])[0], atol=1e-6, rtol=0)
    assert population.actors.mlp.weights[0].data_ptr() == matrix.data_ptr()


def points(rows: int) -> Any:
    return as_batched(DummyVecEnv([partial(Point, length=6) for _ in range(rows)]))


def settings() -> tuple[ObservationCodec, Any]:
    return ObservationCodec(PLACE), actions_of(Point().action_space, torch.device("cpu"), True)


@pytest.mark.parametrize("episodes", [1, 2])
def test_fitness_does_not_depend_on_rows(episodes: int) -> None:
    """Whether they are the members' in turn, each acts in a row of its own, or some are left over."""
    population = Population(actor(0, 1, 1), members(6, 1, 1))
    found = {
        rows: evaluate(population, points(rows), *settings(), episodes=episodes, seed=11)[0]
        for rows in (6 * episodes, 3 * episodes, episodes, 1, 4, 6 * episodes + 1)
    }
    by_hand = []
    for member in range(6):
        returns = []
        for episode in range(episodes):
            env: gym.Env[Any, Any] = Point(length=6)
            obs, _ = env.reset(seed=11 + member * episodes + episode)
            done, total = False, 0.0
            while not done:
                move = actor(member, 1, 1).mode(torch.as_tensor(obs).view(1, 1)).detach().numpy()[0]
                obs, reward, terminated, truncated, _ = env.step(move)
                total, done = total + float(reward), terminated or truncated
            returns.append(total)
        by_hand.append(np.mean(returns))
    for rows, fitness in found.items():
        np.testing.assert_allclose(fitness.numpy(), by_hand, atol=1e-5, err_msg=f"{rows} rows")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_members_on_a_gpu_are_worth_the_same() -> None:
    found = {}
    for device in ("cpu", "cuda"):
        env: Any = make_batched("headway/ShallowTrap-v0", 12, device=device)
        codec, actions = (
            ObservationCodec(env.single_observation_space),
            actions_of(env.single_action_space, env.device, True),
        )
        inputs, outputs = env.single_observation_space.shape[0], env.single_action_space.shape[0]
        population = Population(actor(0, inputs, outputs).to(device), members(6, inputs, outputs).to(device))
        found[device], played = evaluate(population, env, codec, actions, episodes=2, seed=3)
        assert played.lengths.device.type == device
    torch.testing.assert_close(found["cuda"].cpu(), found["cpu"], atol=1e-3, rtol=1e-4)


def test_steps_of_all_members_can_be_kept_and_cut() -> None:
    population = Population(actor(0, 1, 1), members(4, 1, 1))
    _, played = evaluate(population, points(4), *settings(), horizon=3, seed=0, keep=True)
    assert (played.lengths <= 3).all()
    assert (played.terminated ^ played.truncated).all()
    for returned, steps in zip(played.returns, played.split(), strict=True):
        assert float(steps["rewards"].sum()) == pytest.approx(float(returned))


def test_a_search_over_populations_solves_a_point() -> None:
    search = CEMSearch(flatten(actor(0, 1, 1)), 12, torch.Generator().manual_seed(0), variance=0.05, decay=0.05)
    env, told = points(12), []
    for generation in range(25):
        population = Population(actor(0, 1, 1), search.ask())
        fitness, _ = evaluate(population, env, *settings(), seed=12 * generation)
        search.tell(population.members, fitness)
        told.append(float(fitness.mean()))
    at_mean = Population(actor(0, 1, 1), search.mean.unsqueeze(0))
    returns = evaluate(at_mean, points(10), *settings(), episodes=10, seed=500)[0]
    assert told[0] < -1
    assert float(returns) > -0.15


def test_what_makes_no_population_is_refused() -> None:
    with pytest.raises(ValueError, match=r"members must be \(P, 250\), got \(3, 9\)"):
        Population(actor(), torch.zeros(3, 9))
    sees = DeterministicActor(ImageFeatures(spaces.Box(0, 255, (1, 36, 36), np.uint8), 8), A, (4,))
    with pytest.raises(ValueError, match="a population reads vectors"):
        Population(sees, torch.zeros(2, 3))
