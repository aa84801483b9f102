"""MuJoCo Warp on its CPU device against MuJoCo; and on a GPU, where there is one, without waiting for it."""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from headway.envs.mujoco import MujocoBatch, MujocoTask, gpu, scale
from headway.envs.mujoco.cpu import HostEngine
from headway.envs.mujoco.engine import Engine, Sim
from headway.envs.mujoco.gpu import DeviceStreams, WarpEngine
from headway.envs.mujoco.task import compiled
from headway.envs.mujoco.tasks import TASKS
from scipy import stats
from torch import Tensor

pytest.importorskip("mujoco_warp")

CPU = torch.device("cpu")

FLOOR = '<geom type="plane" size="5 5 1" pos="0 0 -0.5"/>'
SENSOR = '<sensor><framepos objtype="site" objname="tip"/></sensor>'
POLE = f"""
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    {FLOOR}
    <body>
      <joint name="slide" type="slide" axis="1 0 0" limited="true" range="-1 1" damping="1"/>
      <geom type="box" size="0.1 0.1 0.05" mass="1" contype="0" conaffinity="0"/>
      <body>
        <joint type="hinge" axis="0 1 0" damping="0.05"/>
        <geom type="capsule" fromto="0 0 0 0 0 0.6" size="0.04" mass="0.3"/>
        <site name="tip" pos="0 0 0.6"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide" gear="50" ctrllimited="true" ctrlrange="-1 1"/></actuator>
  {SENSOR}
</mujoco>
"""
BARE = POLE.replace(FLOOR, "").replace(SENSOR, "")  # half the kernels to compile


@dataclass(frozen=True, kw_only=True)
class Pole(MujocoTask):
    """Keep a pole up; its tip reaches the floor."""

    model: Any = POLE
    frame_skip: int = 2

    def observation(self, sim: Sim) -> Tensor:
        return torch.cat((sim.qpos, sim.qvel, sim.site_xpos[:, 0]), 1)

    def reward(self, sim: Sim, action: Tensor, before: Any) -> Tensor:
        return sim.site_xpos[:, 0, 2] - 0.01 * action.square().sum(1)

    def terminated(self, sim: Sim) -> Tensor:
        return sim.qpos[:, 1].abs() > 2.5

    def reset(self, sim: Sim, random: Any) -> dict[str, Tensor]:
        return {"qpos": random.uniform(-0.1, 0.1, 2), "qvel": 0.1 * random.normal(2)}


def task_of(name: str) -> MujocoTask:
    return Pole() if name == "Pole" else TASKS[name]()


def pair(task: MujocoTask, rows: int) -> tuple[WarpEngine, HostEngine]:
    model = compiled(task.spec())
    return WarpEngine(model, rows, task.frame_skip, (), CPU), HostEngine(model, rows, task.frame_skip, (), 1)


def some_actions(engine: Engine, generator: torch.Generator) -> Tensor:
    low, high = torch.from_numpy(engine.model.actuator_ctrlrange.T).float()
    return low + (high - low) * torch.rand(engine.num_envs, engine.model.nu, generator=generator)


def put_in_sampled_states(task: MujocoTask, warp: WarpEngine, host: HostEngine, seed: int = 0) -> None:
    """Bring both to the same states, which random actions led to, as float32 can hold them."""
    generator, everywhere = torch.Generator().manual_seed(seed), torch.ones(host.num_envs, dtype=torch.bool)
    draws = host.streams()
    draws.seed(range(1000 * seed, 1000 * seed + host.num_envs))
    host.reset(everywhere, task.reset(Sim(host), draws.draw(everywhere)))
    for _ in range(30):
        host.step(some_actions(host, generator))
    names = ("qpos", "qvel", "act", "qacc_warmstart", "time", "mocap_pos", "mocap_quat")
    values = {name: host.bind(name).float() for name in names}
    warp.reset(everywhere, values)
    host.reset(everywhere, values)


# -- random streams: no physics, no kernels ----------------------------------------------------------------------------


def drawn(streams: DeviceStreams, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    draws = streams.draw(rows)
    discs = draws.uniform(-1.0, 1.0, 2, accept=lambda x: x.norm(dim=1) < 1)
    return draws.uniform([-2.0, 0.0, 5.0], [-1.0, 3.0, 5.0], 3), draws.normal(4), discs


def test_a_row_draws_the_same_numbers_whatever_the_others_do() -> None:
    many, single = DeviceStreams(8, CPU), DeviceStreams(1, CPU)
    many.seed(range(100, 108))
    single.seed([105])
    others = torch.tensor([True, False] * 4)
    drawn(many, others)  # row 5 stays
    everywhere = torch.ones(8, dtype=torch.bool)
    for of_many, of_single in zip(drawn(many, everywhere), drawn(single, everywhere[:1]), strict=True):
        assert torch.equal(of_many[5], of_single[0])
        assert not torch.equal(of_many[4], of_single[0])


def test_rows_that_do_not_start_anew_get_zeros_and_stay_where_they_are() -> None:
    streams = DeviceStreams(3, CPU)
    before = streams.state.clone()
    rows = torch.tensor([True, False, True])
    for numbers in drawn(streams, rows):
        assert numbers.dtype == torch.float32
        assert (numbers[1] == 0).all()
        assert (numbers[rows] != 0).all()
    assert (streams.state != before).tolist() == rows.tolist()


def test_seeds_start_streams_and_none_leaves_them() -> None:
    streams, other, independent = DeviceStreams(3, CPU), DeviceStreams(3, CPU), DeviceStreams(3, CPU, (1,))
    assert not torch.equal(streams.state, other.state)
    for each in (streams, other, independent):
        each.seed([4, 5, 6])
    assert torch.equal(streams.state, other.state)
    assert not (streams.state == independent.state).any()
    before = streams.state.clone()
    streams.seed([None, 7], rows=[0, 2])
    assert (streams.state == before).tolist() == [True, True, False]
    other.seed([7], rows=[0])
    assert streams.state[2] == other.state[0]


def test_streams_are_copied_with_their_state() -> None:
    streams = DeviceStreams(2, CPU)
    everywhere = torch.ones(2, dtype=torch.bool)
    streams.state[1] = streams.state[0]
    first, second = streams.draw(everywhere).normal(5)
    assert torch.equal(first, second)


def test_numbers_are_distributed_as_asked() -> None:
    streams = DeviceStreams(4000, CPU)
    streams.seed(range(4000))  # neighbouring seeds must not show
    draws = streams.draw(torch.ones(4000, dtype=torch.bool))
    uniform, normal = draws.uniform(-0.5, 2.0, 5), draws.normal(6)
    assert -0.5 <= uniform.min() < uniform.max() <= 2.0
    for column in range(5):
        assert stats.kstest(uniform[:, column].numpy(), stats.uniform(-0.5, 2.5).cdf).pvalue > 1e-3
        assert stats.kstest(normal[:, column].numpy(), stats.norm.cdf).pvalue > 1e-3
    both = torch.cat((uniform, normal), 1)
    correlations = torch.corrcoef(both.T) - torch.eye(11)
    assert correlations.abs().max() < 5 / 4000**0.5  # five standard deviations of independent columns'
    assert abs(np.corrcoef(both[:-1, 0], both[1:, 0])[0, 1]) < 5 / 4000**0.5


def test_bounds_differ_by_column_and_refused_numbers_are_drawn_again() -> None:
    streams = DeviceStreams(2000, CPU)
    columns, _, discs = drawn(streams, torch.ones(2000, dtype=torch.bool))
    low, high = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([-1.0, 3.0, 5.0])
    assert ((columns >= low) & (columns <= high)).all()
    assert columns[:, 1].std() > 0.8
    assert (discs.norm(dim=1) < 1).all()
    # the square of a radius is uniform in a disc: the first accepted number is kept, none is preferred
    assert stats.kstest(discs.square().sum(1).numpy(), "uniform").pvalue > 1e-3


# -- bad input: nothing is compiled ------------------------------------------------------------------------------------


def test_it_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is cuda: PyTorch finds no CUDA device"):
            MujocoBatch(Pole(), 2, device="cuda")
    with pytest.raises(ValueError, match="MuJoCo Warp runs on 'cuda'"):
        MujocoBatch(Pole(), 2, device="meta", engine="warp")
    monkeypatch.setattr(gpu, "mjw", None)
    with pytest.raises(ValueError, match="pip install 'headway-rl\\[gpu\\]'"):
        MujocoBatch(Pole(), 2, engine="warp")


def test_more_rows_than_memory_are_refused_and_many_are_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"take about .* GiB in MuJoCo Warp, and cpu has .* free: take num_envs=\d+"):
        MujocoBatch(Pole(), 10**9, engine="warp")
    monkeypatch.setattr(gpu, "GIB", 2**10)
    WarpEngine(compiled(Pole().spec()), 2, 1, (), CPU)
    assert "2 worlds in MuJoCo Warp: about" in capsys.readouterr().err


def test_what_warp_cannot_do_is_named() -> None:
    model = compiled(Pole().spec())
    with pytest.raises(ValueError, match="MuJoCo Warp does not have 'qLD'"):
        WarpEngine(model, 2, 1, (), CPU).bind("qLD")
    for field in ("geom_condim", "opt.iterations"):
        with pytest.raises(ValueError, match=f"{field}.*engine='mujoco' can"):
            WarpEngine(model, 2, 1, (field,), CPU)
    sleepy = POLE.replace('<option timestep="0.02"/>', '<option><flag sleep="enable"/></option>')
    with pytest.raises(ValueError, match="sleep"):
        WarpEngine(compiled(Pole(model=sleepy).spec()), 2, 1, (), CPU)


# -- physics -----------------------------------------------------------------------------------------------------------


def test_a_small_task_steps_resets_and_comes_back() -> None:
    batch = MujocoBatch(Pole(model=BARE), 8, engine="warp", max_episode_steps=20)
    first, _ = batch.reset(seed=3)
    generator = torch.Generator().manual_seed(0)
    ended = 0
    for _ in range(30):
        obs, reward, terminated, truncated, info = batch.step(some_actions(batch.engine, generator))
        ended += int((terminated | truncated).sum())
        assert torch.isfinite(obs).all()
        assert torch.isfinite(reward).all()
        assert "failed" not in info
    assert ended >= 8
    assert obs.dtype == reward.dtype == torch.float32
    assert torch.equal(batch.reset(seed=3)[0], first)


# The largest |difference| / (1 + |value|) seen after one step of the environment, from 2,000 states each, of positions
# and of velocities. HalfCheetah's hard contacts (accelerations of thousands) make the odd row much worse than the
# typical one, whose worst velocity is off by 2e-6. Three times as much is allowed.
MEASURED = {
    "InvertedPendulum": (1.7e-7, 1.8e-5),
    "HalfCheetah": (1.4e-5, 1.0e-3),
    "Hopper": (1.0e-7, 2.9e-6),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_single_steps_agree(name: str) -> None:
    task = task_of(name)
    warp, host = pair(task, 200)
    contacts = host.bind("ncon")
    put_in_sampled_states(task, warp, host)
    assert name == "InvertedPendulum" or (contacts > 0).sum() > 50
    actions = some_actions(host, torch.Generator().manual_seed(2))
    warp.step(actions)
    host.step(actions)
    for field, measured in zip(("qpos", "qvel"), MEASURED[name], strict=True):
        expected = host.bind(field)
        difference = (warp.bind(field).double() - expected).abs() / (1 + expected.abs())
        assert difference.max() < 3 * measured
        assert difference.amax(1).median() < 1e-5
    assert not warp.overflow.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Pole", "Hopper", "HalfCheetah"])
def test_derived_fields_have_mujocos_shape_and_meaning(name: str) -> None:
    task = task_of(name)
    warp, host = pair(task, 50)
    fields = ["xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "subtree_com", "cdof"]
    fields += ["cinert", "cvel", "qfrc_actuator", "qfrc_passive", "qfrc_bias", "actuator_force", "actuator_length"]
    fields += ["ten_length", "ten_velocity", "sensordata", "nefc", "time", "ctrl", "eq_active", "mocap_pos", "act"]
    for engine in (warp, host):
        for field in fields:
            assert engine.bind(field) is engine.bind(field) or engine is host
    put_in_sampled_states(task, warp, host)
    for _ in range(2):  # after the reset, and after a step
        for field in fields:
            mine, expected = warp.bind(field), host.bind(field)
            assert mine.shape == expected.shape
            assert mine.dtype in (torch.float32, torch.int32, torch.bool)
            scale_of = 1 + (expected.abs().max() if expected.numel() else 0)
            # velocities of hard contacts, see MEASURED, enter many of them
            assert torch.allclose(mine.double(), expected.double(), atol=1e-3 * float(scale_of)), field
        actions = some_actions(host, torch.Generator().manual_seed(2))
        warp.step(actions)
        host.step(actions)


@pytest.mark.slow
def test_contact_forces_are_those_of_the_step_and_zero_after_a_reset() -> None:
    on_cpu = MujocoBatch(TASKS["Ant"](), 40, num_threads=1)
    on_warp = MujocoBatch(TASKS["Ant"](), 40, engine="warp")
    for batch in (on_cpu, on_warp):
        batch.reset(seed=0)
    everywhere = torch.ones(40, dtype=torch.bool)
    # upright on the floor with straight legs: where capsules stand steeply, MuJoCo Warp turns the pyramid of friction
    qpos = on_warp.engine.bind("qpos").clone()
    qpos[:, 2], qpos[:, 7:] = torch.linspace(0.1, 0.3, 40), 0.0
    for batch in (on_cpu, on_warp):
        batch.engine.reset(everywhere, {"qpos": qpos, "qvel": torch.zeros(40, 14)})
        assert not batch.engine.bind("cfrc_ext").any()
        batch.step(torch.zeros(40, 8))
    expected, found = on_cpu.engine.bind("cfrc_ext"), on_warp.engine.bind("cfrc_ext")
    assert found.shape == expected.shape == (40, 14, 6)
    assert (expected.abs().amax((1, 2)) > 1).sum() > 10
    assert torch.allclose(found.double(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HalfCheetah", "Hopper", "InvertedPendulum"])
def test_the_tasks_functions_agree_on_equal_states(name: str) -> None:
    task = task_of(name)
    warp, host = pair(task, 50)
    sims = Sim(warp), Sim(host)
    everywhere = torch.ones(50, dtype=torch.bool)
    for sim in sims:  # binds what they read
        task.observation(sim)
        task.reward(sim, torch.zeros(50, host.model.nu), task.before(sim))
    put_in_sampled_states(task, warp, host)
    before = [task.before(sim) for sim in sims]
    moved = {"qpos": (host.bind("qpos") + 0.01).float(), "qvel": host.bind("qvel").float()}
    for engine in (warp, host):
        engine.reset(everywhere, moved)
    actions = some_actions(host, torch.Generator().manual_seed(3))
    judged = [task.reward(sim, actions, old) for sim, old in zip(sims, before, strict=True)]
    (mine, parts), (expected, expected_parts) = judged
    # a difference of positions of about 1, divided by 8 ms: 6e-8 / 0.008 twice
    assert torch.allclose(mine, expected.float(), rtol=1e-6, atol=2e-5)
    assert all(torch.allclose(parts[part], expected_parts[part].float(), rtol=1e-6, atol=2e-5) for part in parts)
    mine, expected = (task.observation(sim) for sim in sims)
    assert mine.dtype == torch.float32
    assert torch.allclose(mine, expected.float(), rtol=1e-6, atol=1e-6)
    ends = [task.terminated(sim) for sim in sims]
    assert (ends[0] is None and ends[1] is None) or torch.equal(*ends)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("HalfCheetah", 100), ("Hopper", 200)])
def test_whole_episodes_are_distributed_alike(name: str, length: int) -> None:
    returns = {}
    for engine in ("mujoco", "warp"):
        batch = MujocoBatch(task_of(name), 128, engine=engine, num_threads=1, max_episode_steps=length)
        batch.reset(seed=0)
        generator = torch.Generator().manual_seed(0 if engine == "warp" else 1)
        scores = torch.full((128,), torch.nan)
        for _ in range(length):
            _, _, terminated, truncated, info = batch.step(some_actions(batch.engine, generator))
            first = (terminated | truncated) & scores.isnan()
            scores = torch.where(first, info["episode"]["r"].float(), scores)
        assert not scores.isnan().any()
        returns[engine] = scores.numpy()
    assert stats.ks_2samp(returns["mujoco"], returns["warp"]).pvalue > 0.01
    assert returns["warp"].std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Pole", "HalfCheetah"])
def test_restored_rows_go_on_as_before(name: str) -> None:
    randomise = {"body_mass": scale(0.5, 2.0)}
    batch = MujocoBatch(task_of(name), 6, engine="warp", randomise=randomise, max_episode_steps=12)
    batch.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    actions = [some_actions(batch.engine, generator) for _ in range(25)]  # through ends and resets
    for _ in range(5):
        batch.step(actions[0])

    def play(who: MujocoBatch, rows: Tensor) -> list[Tensor]:
        return [torch.cat((obs, reward.unsqueeze(1)), 1) for obs, reward, *_ in (who.step(a[rows]) for a in actions)]

    everywhere, turned = torch.arange(6), torch.tensor([3, 4, 5, 0, 1, 2])
    kept, physics = batch.state(), batch.physics["body_mass"]
    future = play(batch, everywhere)
    assert not torch.equal(batch.physics["body_mass"], physics)

    batch.load_state(kept)
    assert torch.equal(batch.physics["body_mass"], physics)
    assert all(torch.equal(*both) for both in zip(play(batch, everywhere), future, strict=True))

    batch.load_state(kept)  # rows elsewhere in the batch
    batch.copy_rows(torch.arange(3), torch.arange(3, 6))
    batch.load_state({field: value[3:] for field, value in kept.items()}, torch.arange(3))
    assert all(torch.equal(x[:3], y[3:]) for x, y in zip(play(batch, turned), future, strict=True))

    other = MujocoBatch(task_of(name), 6, engine="warp", randomise=randomise, max_episode_steps=12)
    other.load_state(kept)
    assert all(torch.equal(*both) for both in zip(play(other, everywhere), future, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Pole", "HalfCheetah", "Ant"])
def test_a_partial_reset_leaves_every_bit_of_the_other_rows(name: str) -> None:
    batches = [MujocoBatch(task_of(name), 8, engine="warp", randomise={"body_mass": scale(0.5, 2.0)}) for _ in range(2)]
    for batch in batches:
        batch.engine.bind("qacc")
        batch.engine.bind("xmat")
        batch.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    actions = [some_actions(batches[0].engine, generator) for _ in range(20)]
    for batch in batches:
        for step in range(10):
            batch.step(actions[step])
    rows = torch.tensor([True, False] * 4)
    batches[0].reset(seed=5, options={"reset_mask": rows})
    untouched, reset = batches[1].state(), batches[0].state()
    for field, value in untouched.items():
        assert torch.equal(reset[field][~rows], value[~rows]), field
    assert not torch.equal(reset["engine.qpos"][rows], untouched["engine.qpos"][rows])
    assert (reset["engine.time"][rows] == 0).all()
    assert not torch.equal(reset["engine.model.body_mass"][rows], untouched["engine.model.body_mass"][rows])
    for step in range(10, 20):
        one, other = (batch.step(actions[step])[0] for batch in batches)
        assert torch.equal(one[~rows], other[~rows])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Pole", "HalfCheetah"])
@pytest.mark.parametrize("how", ["control", "velocity"])
def test_a_row_that_breaks_down_ends_alone(name: str, how: str) -> None:
    batches = [MujocoBatch(task_of(name), 4, engine="warp") for _ in range(2)]
    for batch in batches:
        batch.reset(seed=0)
    actions = some_actions(batches[0].engine, torch.Generator().manual_seed(0))
    broken = actions.clone()
    if how == "control":
        broken[2, 0] = torch.nan
    else:
        batches[0].engine.bind("qvel")[2, 0] = 1e30
    with pytest.warns(RuntimeWarning, match=r"row 2 broke down \(not finite"):
        obs, reward, terminated, _, info = batches[0].step(broken)
    expected = batches[1].step(actions)[0]
    others = torch.tensor([True, True, False, True])
    assert torch.equal(obs[others], expected[others])
    assert terminated.tolist() == info["failed"].tolist() == [False, False, True, False]
    assert reward[2] == 0
    for _ in range(10):
        obs, reward, _, _, info = batches[0].step(actions)
        assert torch.isfinite(obs).all()
        assert "failed" not in info


@pytest.mark.slow
def test_masses_that_differ_act_as_they_do_in_mujoco() -> None:
    task = task_of("Pole")
    model = compiled(task.spec())
    fields = ("body_mass", "opt.gravity", "geom_friction")
    warp = WarpEngine(model, 30, 2, fields, CPU)
    host = HostEngine(model, 30, 2, fields, 1)
    generator = torch.Generator().manual_seed(0)
    everywhere, rows = torch.ones(30, dtype=torch.bool), torch.arange(30) < 20
    drawn_fields = {
        field: warp.model_field(field) * (0.5 + torch.rand(warp.model_field(field).shape, generator=generator))
        for field in fields
    }
    for engine in (warp, host):
        nominal = engine.model_field("body_mass")[25].clone()
        engine.set_model(rows, drawn_fields)
        assert torch.equal(engine.model_field("body_mass")[25], nominal)
        assert torch.allclose(engine.model_field("body_mass")[:20].float(), drawn_fields["body_mass"][:20])
        engine.reset(everywhere, {"qpos": torch.full((30, 2), 0.2), "qvel": torch.zeros(30, 2)})
        for _ in range(5):
            engine.step(torch.full((30, 1), 0.4))
    subtree = warp.model_field("body_subtreemass")  # a constant that MuJoCo derives from them
    assert torch.allclose(subtree[:, 0], warp.model_field("body_mass").sum(1))
    assert warp.bind("qpos")[:20, 1].std() > 1e-3
    assert torch.allclose(warp.bind("qpos").double(), host.bind("qpos"), atol=1e-5)
    assert torch.allclose(warp.bind("qvel").double(), host.bind("qvel"), atol=1e-4)


@pytest.mark.slow
def test_a_field_bound_late_is_computed_from_then_on() -> None:
    task = task_of("Pole")
    warp, host = pair(task, 5)
    put_in_sampled_states(task, warp, host)
    actions = some_actions(host, torch.Generator().manual_seed(0))
    for _ in range(3):  # the graph is captured by now
        warp.step(actions)
    assert warp.bind("cfrc_int").shape == (5, 3, 6)
    warp.bind("cfrc_int").zero_()
    warp.step(actions)
    assert warp.bind("cfrc_int")[:, 1:].any(2).all()


@pytest.mark.slow
def test_constraints_that_do_not_fit_are_noticed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "_room", lambda *_: {"nconmax": 4, "njmax": 4})
    batch = MujocoBatch(task_of("HalfCheetah"), 4, engine="warp")
    batch.reset(seed=0)
    rows = torch.tensor([False, True, False, False])
    batch.engine.reset(rows, {"qpos": torch.full((4, 9), -0.3)})  # deep in the floor
    batch.step(torch.zeros(4, 6))
    assert batch.engine.overflow[1] != 0
    assert batch.engine.overflow[0] == 0
    assert "overflow" in capfd.readouterr().out


@pytest.mark.slow
def test_a_row_is_drawn_as_it_is() -> None:
    batch = MujocoBatch(Pole(), 3, engine="warp", randomise={"body_mass": scale(0.5, 2.0)})
    batch.reset(seed=0)
    model = mujoco.MjModel.from_xml_string(POLE)
    data = mujoco.MjData(model)
    batch.engine.drawing(1, model, data)
    assert np.array_equal(data.qpos, batch.engine.bind("qpos")[1].numpy())
    assert np.array_equal(model.body_mass, batch.physics["body_mass"][1].numpy())
    assert np.allclose(data.site_xpos[0], batch.engine.bind("site_xpos")[1].numpy(), atol=1e-6)


# -- on a GPU ----------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["HalfCheetah", "Ant", "Pusher"])
def test_no_step_waits_for_the_gpu(name: str) -> None:
    batch = MujocoBatch(task_of(name), 64, device="cuda", randomise={"body_mass": scale(0.8, 1.2)}, max_episode_steps=7)
    batch.reset(seed=0)
    actions = torch.zeros(batch.action_space.shape, device="cuda")
    for _ in range(20):  # compiles and captures, resets too
        batch.step(actions)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            obs, _, _, _, info = batch.step(actions)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert obs.is_cuda
    assert torch.isfinite(obs).all()
    assert not info["failed"].any()
    assert all(graph is not None for graph in batch.engine._graphs.values())  # captured, hence replayed


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_agrees_with_the_cpu_device() -> None:
    task = task_of("HalfCheetah")
    model = compiled(task.spec())
    engines = [WarpEngine(model, 32, task.frame_skip, (), device) for device in ("cpu", "cuda")]
    for engine in engines:
        engine.reset(torch.ones(32, dtype=torch.bool, device=engine.device), {})
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            engine.step(some_actions(engine, generator).to(engine.device))
    on_cpu, on_gpu = (engine.bind("qpos").cpu() for engine in engines)
    assert torch.allclose(on_cpu, on_gpu, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_streams_draw_the_same_on_the_gpu() -> None:
    on_cpu, on_gpu = DeviceStreams(10, CPU), DeviceStreams(10, torch.device("cuda"))
    for streams in (on_cpu, on_gpu):
        streams.seed(range(10))
    everywhere = torch.ones(10, dtype=torch.bool)
    for mine, expected in zip(drawn(on_gpu, everywhere.cuda()), drawn(on_cpu, everywhere), strict=True):
        assert torch.allclose(mine.cpu(), expected, atol=1e-6)
    assert torch.equal(on_cpu.state, on_gpu.state.cpu())
