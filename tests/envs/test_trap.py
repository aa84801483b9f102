"""The trap: its walls, what straight ways and detours come to, rows and single environments, snapshots."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from headway.envs import make_batched
from headway.envs.batched import Resettable, RowSnapshots, require
from headway.envs.trap import BOUNDS, HALF_WIDTH, SHALLOW, SHALLOW_ID, TRAP_ID, TrapBatch
from torch import Tensor


def towards(obs: Tensor, targets: Tensor) -> Tensor:
    """:return: pushes towards places, (N, 2)"""
    return (4 * (targets - obs[:, :2]) - 3 * obs[:, 2:]).clamp(-1, 1)


def played(env: TrapBatch, around: bool) -> tuple[Tensor, Tensor, Tensor]:
    """:return: places of all steps (T, N, 2), returns (N,), and whether the goal was reached (N,)"""
    obs, _ = env.reset(seed=0)
    places, info = [], {}
    corner = torch.zeros(env.num_envs, dtype=torch.bool)
    for _ in range(env.horizon):
        corner |= (obs[:, 1] > HALF_WIDTH + 0.2) & (obs[:, 0] > -0.3)
        x, y = obs[:, 0], obs[:, 1]
        above = torch.where(y < HALF_WIDTH + 0.1, -1.1, 0.3)
        detour = torch.stack((torch.where(x > 0.2, 1.0, above), torch.where(x > 0.2, 0.0, HALF_WIDTH + 0.4)), 1)
        targets = detour if around else torch.tensor([[1.0, 0.0]]).expand(env.num_envs, 2)
        obs, _, _, _, info = env.step(towards(obs, targets))
        places.append(info["final_obs"][:, :2])
    return torch.stack(places), info["episode"]["r"], info["is_success"]


@pytest.mark.parametrize("depth", [0.0, 0.6, 0.9])
def test_the_straight_way_is_a_dead_end_and_the_detour_is_not(depth: float) -> None:
    straight, direct, reached = played(TrapBatch(8, depth=depth), around=False)
    assert not reached.any()
    assert (straight[..., 0] < 0).all()
    assert (straight[-1, :, 0] > -0.01).all()  # at the back of the trap
    _, detour, reached = played(TrapBatch(8, depth=depth), around=True)
    assert reached.all()
    assert (detour > direct + 50).all()


def test_the_way_out_of_a_deeper_trap_leads_further_from_the_goal() -> None:
    """From the back of the trap, whoever wants around its side has to go back by its depth."""
    for depth in (0.3, 0.9):
        env = TrapBatch(1, depth=depth)
        env.reset(seed=0)
        state = env.state()
        state["place"] = torch.tensor([[-0.05, 0.0]], dtype=torch.float64)
        env.load_state(state)
        for _ in range(80):
            obs, *_ = env.step(torch.tensor([[0.0, 1.0]]))
        assert float(obs[0, 1]) < HALF_WIDTH  # the side holds
        assert float(obs[0, 0]) == pytest.approx(-0.05)
        for _ in range(int(40 + 40 * depth)):
            obs, *_ = env.step(torch.tensor([[-1.0 if obs[0, 2] > -0.5 else 0.0, 1.0]]))
        assert float(obs[0, 0]) < -depth or float(obs[0, 1]) > HALF_WIDTH


def test_nobody_leaves_nor_passes_a_wall() -> None:
    env = TrapBatch(64, 400)
    torch.manual_seed(0)
    obs, _ = env.reset(seed=3)
    push = torch.rand(64, 2) * 2 - 1
    for step in range(400):
        before = obs
        if step % 10 == 0:
            push = torch.rand(64, 2) * 2 - 1
        obs, *_, info = env.step(push)
        after = info["final_obs"]
        assert (after[:, :2].abs() <= torch.tensor(BOUNDS)).all()
        crossed = (before[:, 0] * after[:, 0] < 0) & (before[:, 1].abs() <= HALF_WIDTH)
        assert not crossed.any()
        inside = (before[:, 0] <= 0) & (before[:, 0] >= -0.6) & (after[:, 0] <= 0) & (after[:, 0] >= -0.6)
        assert not (inside & ((before[:, 1].abs() < HALF_WIDTH) != (after[:, 1].abs() < HALF_WIDTH))).any()


def test_rows_are_single_environments() -> None:
    env, numpy = make_batched(TRAP_ID, 3, depth=0.4), gym.make_vec(TRAP_ID, 3, depth=0.4)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=7)
    arrays, _ = numpy.reset(seed=7)
    singles = [gym.make(TRAP_ID, depth=0.4) for _ in range(3)]
    firsts = np.stack([single.reset(seed=7 + row)[0] for row, single in enumerate(singles)])
    np.testing.assert_array_equal(arrays, firsts)
    np.testing.assert_allclose(obs.numpy(), firsts, atol=1e-6)
    for _ in range(200):
        actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        _, rewards, terminated, truncated, info = env.step(torch.from_numpy(actions))
        assert not terminated.any()
        for row, single in enumerate(singles):
            after, reward, ended, cut, _ = single.step(actions[row])
            np.testing.assert_allclose(info["final_obs"][row].numpy(), after, atol=1e-5)
            assert (float(rewards[row]), bool(truncated[row])) == (pytest.approx(reward, abs=1e-5), cut)
            assert not ended
    assert truncated.all()


def test_snapshots_go_on_exactly() -> None:
    env = TrapBatch(4, 30)
    env.reset(seed=0)
    require(env, RowSnapshots)  # type: ignore[type-abstract]
    require(env, Resettable)  # type: ignore[type-abstract]
    pushes = torch.rand(50, 4, 2) * 2 - 1
    for step in range(20):
        env.step(pushes[step])
    other = env.like(4)
    other.load_state(env.state())
    for step in range(20, 50):  # over the end of an episode: the random stream counts too
        one, two = env.step(pushes[step]), other.step(pushes[step])
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_gymnasium_takes_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of infinite bounds
        check_env(gym.make(TRAP_ID).unwrapped, skip_render_check=True)
    with pytest.raises(ValueError, match=r"depth is 1.5: it must lie in \[0, 0.9\]"):
        TrapBatch(2, depth=1.5)


def test_the_shallow_trap_is_one_in_every_form() -> None:
    (batch, numpy), single = (make(SHALLOW_ID, 2) for make in (make_batched, gym.make_vec)), gym.make(SHALLOW_ID)
    assert isinstance(batch, TrapBatch)
    assert batch.depth == numpy.unwrapped.batched.depth == single.unwrapped.batch.depth == SHALLOW < TrapBatch(1).depth
    assert batch.horizon == 200
