"""``headway benchmark rollout``, with turns too short to say anything about speed."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import Command
from gymnasium import spaces
from headway.envs import BatchedEnv, make_batched
from headway.envs.mujoco import MujocoBatch
from headway.scripts import contenders
from headway.scripts.benchmark_rollout import Measurement, RolloutOptions, ratios
from headway.scripts.contenders import MAKERS, WARM_UP, Act, Replay, Scene, Side, drawn_actions, period
from headway.scripts.figures import STYLES
from headway.scripts.timing import Absent, take_turns

TINY = ("--rounds", 3, "--seconds", 0.004, "--num-envs", 1, 8, "--peer-envs", 8)
IN_PROCESS = ("gymnasium", "gymnasium-sync", "sb3-dummy", "envpool")


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a package seem not to be installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *args: None if n == name else find(n, *args))


@pytest.mark.parametrize(
    ("robots", "policy"), [(("HalfCheetah", "Hopper"), ()), (("Hopper",), ("--policy",))], ids=["drawn", "policy"]
)
def test_rollout_writes_what_it_measured(
    headway: Command, robots: tuple[str, ...], policy: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    without("envpool", monkeypatch)
    flags = ("--robots", *robots, "--peers", *IN_PROCESS, "--gpu-num-envs", *TINY, *policy)
    code, out, err = headway("benchmark", "rollout", *flags, "--json", "r.json", "--plot", "r.png")
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("r.json").read_text())

    timed = {(m["robot"], m["side"], m["num_envs"]) for m in read["measurements"]}
    ours = [(side, n) for side in ("headway", "mujoco.batch") for n in (1, 8)]
    peers = [("gymnasium", 1), ("gymnasium-sync", 8), ("sb3-dummy", 8)]
    assert timed == {(robot, *side) for robot in robots for side in ours + peers}
    assert all(len(m["rates"]) == 3 and min(m["rates"]) > 0 for m in read["measurements"])
    assert all(m["median"] == statistics.median(m["rates"]) for m in read["measurements"])
    assert [(a["robot"], a["side"]) for a in read["absent"]] == [(robot, "envpool") for robot in robots]

    medians = {(m["robot"], m["side"], m["num_envs"]): m["median"] for m in read["measurements"]}
    dummy = next(r for r in read["ratios"] if (r["robot"], r["side"]) == ("Hopper", "sb3-dummy"))
    assert dummy["at_peer_envs"] == medians["Hopper", "headway", 8] / medians["Hopper", "sb3-dummy", 8]

    assert read["options"]["policy"] is bool(policy)
    assert read["versions"]["mujoco"][0].isdigit()
    assert read["machine"]["cores"] >= 1
    assert read["torch_threads"] == torch.get_num_threads()
    assert {"command", "load_before", "load_after", "unit"} <= read.keys()
    assert out.count("envpool          absent: it is not installed") == len(robots)
    assert ("actor in the loop" in out) is bool(policy)
    assert matplotlib.image.imread("r.png").std() > 0.01


def test_process_pools_and_envpool(headway: Command) -> None:
    peers = ["gymnasium-async", "sb3-subproc", *(["envpool"] if importlib.util.find_spec("envpool") else [])]
    flags = ("--robots", "Hopper", "--peers", *peers, "--processes", 2, "--gpu-num-envs")
    code, out, err = headway("benchmark", "rollout", *flags, *TINY, "--json", "r.json")
    assert code == 0, err
    found = {m["side"]: m for m in json.loads(Path("r.json").read_text())["measurements"]}
    assert {side: (found[side]["num_envs"], found[side]["workers"]) for side in peers[:2]} == {
        "gymnasium-async": (2, "2 processes"),
        "sb3-subproc": (2, "2 processes"),
    }
    if "envpool" in peers:
        assert found["envpool"]["workers"].endswith(" Hopper-v5")
    assert "warning" not in out.lower() + err.lower()
    assert not Path("MUJOCO_LOG.TXT").exists()


def test_delays_are_a_side_of_their_own(headway: Command) -> None:
    flags = ("--robots", "HalfCheetah", "--peers", "--gpu-num-envs", *TINY, "--delay", "constant:2,uniform:0-1")
    code, out, err = headway("benchmark", "rollout", *flags, "--json", "r.json")
    assert code == 0, err
    read: dict[str, Any] = json.loads(Path("r.json").read_text())
    timed = {(m["side"], m["num_envs"]): m for m in read["measurements"]}
    assert timed.keys() == {(s, n) for s in ("headway", "headway-delayed", "mujoco.batch") for n in (1, 8)}
    assert timed["headway-delayed", 1]["workers"] == "1 thread, behind constant:2,uniform:0-1"
    ratio = next(r for r in read["ratios"] if (r["side"], r["num_envs"]) == ("headway-delayed", 8))
    assert ratio["at_same_rows"] == timed["headway", 8]["median"] / timed["headway-delayed", 8]["median"]
    assert read["options"]["delay"] == "constant:2,uniform:0-1"
    assert out.count("headway-delayed") == 2


def test_ratios() -> None:
    def timed(side: str, num_envs: int, *rates: float) -> Measurement:
        return Measurement("Ant", side, num_envs, "1 thread", list(rates))

    measurements = [
        timed("headway", 8, 80.0, 100.0, 900.0),
        timed("headway", 64, 300.0),
        timed("mujoco.batch", 8, 125.0),
        timed("envpool", 64, 100.0, 150.0),
        timed("sb3-subproc", 4, 30.0),
        timed("headway-gpu", 64, 3000.0),
    ]
    found = {(r["side"], r["num_envs"]): (r["at_same_rows"], r["at_peer_envs"]) for r in ratios(measurements, 64)}
    assert found == {
        ("headway", 8): (None, None),
        ("headway", 64): (None, None),
        ("mujoco.batch", 8): (0.8, None),
        ("envpool", 64): (2.4, 2.4),
        ("sb3-subproc", 4): (None, 10.0),
        ("headway-gpu", 64): (0.1, None),
    }


def test_files_are_not_overwritten_unasked(headway: Command) -> None:
    flags = ("--robots", "HalfCheetah", "--peers", "--gpu-num-envs", *TINY)
    for flag, name in (("--json", "old.json"), ("--plot", "old.png")):
        Path(name).write_text("precious")
        code, _, err = headway("benchmark", "rollout", *flags, flag, name)
        assert code == 1
        assert f"{name} exists: choose another name or pass --overwrite" in err
        assert Path(name).read_text() == "precious"
    code, _, err = headway("benchmark", "rollout", *flags, "--json", "old.json", "--overwrite")
    assert code == 0, err
    assert json.loads(Path("old.json").read_text())["measurements"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--robots", "HalfCheeta"), "--robots HalfCheeta: there is no such robot: did you mean HalfCheetah?"),
        (("--robots",), "--robots: name some of Ant, "),
        (("--rounds", 0), "--rounds must lie in [1, inf), got 0"),
        (("--num-envs", 8, 0), "--num-envs must lie in [1, inf), got 0"),
        (("--seconds", -1), "--seconds must lie in [0.001, inf) s, got -1"),
        (("--peers", "envpol"), "envpol"),
        (("--delay", "wify,wifi"), "wify"),
        (("--json", "/proc/r.json"), "cannot write /proc/r.json: "),
    ],
)
def test_mistakes_are_said_in_one_line(headway: Command, flags: tuple[Any, ...], message: str) -> None:
    code, out, err = headway("benchmark", "rollout", *flags)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_benchmark_lists_what_there_is(headway: Command) -> None:
    code, out, _ = headway("benchmark")
    assert code == 0
    assert "speed" in out
    assert "rollout" in out
    code, _, err = headway("benchmark", "rolout")
    assert (code, err.strip()) == (1, "headway: error: there is no benchmark 'rolout': did you mean rollout?")


def test_torch_threads_are_put_back(headway: Command) -> None:
    torch.set_num_threads(2)
    flags = ("--robots", "HalfCheetah", "--peers", "--gpu-num-envs", "--torch-threads", 1, *TINY, "--json", "r.json")
    assert headway("benchmark", "rollout", *flags)[0] == 0
    assert json.loads(Path("r.json").read_text())["torch_threads"] == 1
    assert torch.get_num_threads() == 2


def test_turns_alternate_and_last_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    turns: list[tuple[str, int]] = []
    monkeypatch.setattr("headway.scripts.timing.time", SimpleNamespace(perf_counter=lambda: now))

    class Worker:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def run(self, count: int) -> int:
            nonlocal now
            now += count * self.seconds
            turns.append((self.name, count))
            return -count

    def make(name: str, rows: int) -> Worker:
        if rows == 9:
            raise Absent("there are no nine")
        return Worker(name, {"quick": 1.0, "slow": 4.0, "slower": 40.0}[name])

    planned = [("quick", 1), ("slow", 9), ("slow", 2), ("slower", 1)]
    timed, absent = take_turns("work", planned, make, 2, 20.0, warm_up=7, least=2)
    assert absent == [("slow", 9, "there are no nine")]
    assert turns[:6] == [("quick", 7), ("quick", 2), ("quick", 4), ("quick", 8), ("slow", 7), ("slow", 2)]
    assert turns[-6:] == [("quick", 20), ("slow", 5), ("slower", 2)] * 2
    assert [(t.name, t.rows, t.count, t.laps) for t in timed] == [
        ("quick", 1, 20, [(-20, 20.0)] * 2),
        ("slow", 2, 5, [(-5, 20.0)] * 2),
        ("slower", 1, 2, [(-2, 80.0)] * 2),
    ]


@pytest.mark.parametrize("robot", ["HalfCheetah", "Hopper"])
def test_mujoco_alone_replays_our_physics_bit_for_bit(robot: str) -> None:
    """So that the two differ by what the task costs, and by nothing else. Hopper falls, and is set up again."""
    steps, num_envs = 40, 6
    scene = Scene(robot, 2, False)

    def batch() -> MujocoBatch:
        made = make_batched(f"headway/{robot}-v5", num_envs)
        assert isinstance(made, MujocoBatch)
        return made

    def act(env: MujocoBatch) -> Act:
        return scene.act(env.single_observation_space, env.single_action_space, num_envs, "cpu")

    ours, theirs = batch(), batch()
    side, replay = Side(ours, num_envs, act(ours), ours.reset(seed=0)[0], ""), Replay(theirs, act(theirs), steps)
    side.run(WARM_UP)
    for _ in range(2):
        assert np.array_equal(replay.batch.state, ours.engine.state(None)["integration"].numpy())
        side.run(steps // 2)
        assert replay.run(steps // 2) == steps // 2 * num_envs
    expected = ours.engine.state(None)["integration"].numpy()
    assert np.array_equal(replay.batch.state, expected)
    assert any(restart for _, restart in replay.recording) is (robot == "Hopper")
    replay.run(steps)  # from the start again
    assert np.array_equal(replay.batch.state, expected)


def test_everybody_gets_the_same_actions() -> None:
    space = spaces.Box(np.float32(-0.4), np.float32(0.4), (3,), np.float32)
    arrays, tensors = drawn_actions(space, 8, None), drawn_actions(space, 8, "cpu")
    first = arrays(None)
    assert np.array_equal(first, tensors(None).numpy())
    assert (first.dtype, first.shape) == (np.float32, (8, 3))
    assert 0.2 < np.abs(first).max() <= 0.4
    assert not np.array_equal(first, arrays(None))
    for _ in range(period(8) - 2):
        arrays(None)
    assert np.array_equal(first, arrays(None))


@pytest.mark.parametrize("name", ["gymnasium-sync", "sb3-dummy", "headway", "headway-delayed"])
def test_actors_act_within_bounds(name: str) -> None:
    side = MAKERS[name](Scene("Humanoid", 1, True, "wifi,wifi"), 4)
    try:
        actions = torch.as_tensor(side.act(side.obs))
        assert actions.shape == (4, 17)
        assert actions.dtype == torch.float32
        assert 0.1 < actions.abs().max() <= 0.4
        assert not torch.equal(actions, torch.as_tensor(side.act(side.obs)))  # it samples
    finally:
        side.close()


@pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed")
def test_steps_in_which_envpool_only_resets_do_not_count() -> None:
    side = MAKERS["envpool"](Scene("Hopper", 1, False), 8)
    try:
        counted = side.run(200)
        assert 0.8 * 1600 < counted < 1600
    finally:
        side.close()


def test_absent_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    without("envpool", monkeypatch)
    with pytest.raises(Absent, match="pip install envpool"):
        MAKERS["envpool"](Scene("Hopper", 1, False), 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Absent, match="no CUDA device"):
        MAKERS["headway-gpu"](Scene("Hopper", 1, False), 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    without("mujoco_warp", monkeypatch)
    with pytest.raises(Absent, match="mujoco_warp"):
        MAKERS["headway-gpu"](Scene("Hopper", 1, False), 8)


@pytest.mark.parametrize("policy", [False, True])
def test_gpu_side_synchronises_once_per_turn(policy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    asked: list[str] = []

    def make(env_id: str, num_envs: int, device: str) -> BatchedEnv:
        asked.append(device)
        return make_batched(env_id, num_envs)

    monkeypatch.setattr(contenders, "make_batched", make)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    side = MAKERS["headway-gpu"](Scene("Hopper", 1, policy), 4)
    assert side.run(10) == 40
    assert (asked, waited) == (["cuda"], [True])


def test_every_side_can_be_drawn() -> None:
    assert STYLES.keys() == MAKERS.keys()
    assert {side for side, _ in RolloutOptions(delay="wifi,wifi").sides()} == MAKERS.keys()
    assert {side for side, _ in RolloutOptions().sides()} == MAKERS.keys() - {"headway-delayed"}


def test_speed_of_dcac_is_measured_against_sac_on_the_same_observations(
    headway: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headway.scripts.benchmark.WARM_UP", 140)
    file = tmp_path / "speed.json"
    small = ("--rounds", 2, "--updates", 2, "--steps", 3, "--threads", 1)
    code, out, _ = headway("benchmark", "speed", "--agents", "dcac", "--env", "Pendulum-v1", *small, "--json", file)
    assert code == 0
    assert "dcac and its peer, our SAC: batch 128, behind delays constant:2,2" in out
    found = json.loads(file.read_text())["measurements"]
    assert {(m["quantity"], m["side"]) for m in found} == {
        (quantity, side) for quantity in ("updates/s", "learn steps/s") for side in ("headway", "peer")
    }
    assert all(len(m["rates"]) == 2 and min(m["rates"]) > 0 for m in found)
    code, _, err = headway("benchmark", "speed", "--json", file)
    assert (code, f"{file} exists: choose another name or pass --overwrite" in err) == (1, True)
    code, _, err = headway("benchmark", "speed", "--updates", 0)
    assert (code, "--updates must lie in [1, inf), got 0" in err) == (1, True)
    code, _, err = headway("benchmark", "speed", "--agents", "mbpo")
    assert (code, "--agents mbpo: there is no peer to time it against" in err) == (1, True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--device -", "--device -: there is no such device here"),
        ("--device meta", "--device meta: there is no such device here"),
        ("--device cuda:99", "--device cuda:99: there is no such device here"),
        ("--threads 0", "--threads must lie in [1, inf), got 0"),
        ("--threads 1 -1", "--threads must lie in [1, inf), got -1"),
        ("--compile nonsense", "invalid choice 'nonsense' for argument '--compile'"),
        ("--agents", "--agents: name at least one of sac, td3, dcac, ppo, dqn"),
        ("--agents sac sac", "--agents sac sac: one is named twice"),
        ("--precision float32 float32", "--precision float32 float32: one is named twice"),
        ("--minibatches 64 512 64", "--minibatches 64 512 64: one is named twice"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_is(headway: Command, flags: str, said: str) -> None:
    code, _, err = headway("benchmark", "speed", *flags.split())
    assert (code, err.count("\n")) == (1, 1)
    assert said in err


def test_speed_of_ppo_is_that_of_learn_for_every_minibatch_and_peer(headway: Command) -> None:
    small = ("--rounds", 2, "--minibatches", 1024, 2048, "--threads", 1, "--json", "speed.json")
    code, out, err = headway("benchmark", "speed", "--agents", "ppo", "--env", "InvertedPendulum-v5", *small)
    assert (code, err) == (0, "")
    found = json.loads(Path("speed.json").read_text())["measurements"]
    assert [(m["agent"], m["side"]) for m in found] == [
        (f"ppo {minibatch}", side) for minibatch in (1024, 2048) for side in ("headway", "peer", "peer on our batch")
    ]
    assert {m["quantity"] for m in found} == {"learn steps/s"}
    assert [line.split()[:4] for line in out.splitlines() if "2048 " in line and "learn" in line] == [
        ["ppo", "2048", "learn", "steps/s"]
    ] * 2
    code, _, err = headway("benchmark", "speed", "--agents", "ppo", "--env", "Pendulum-v1")
    assert (code, "--env Pendulum-v1: PPO is timed in what has a batched form" in err) == (1, True)


def test_speed_of_dqn_and_of_both_precisions(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 would only be slower, a processor that gains is made believe."""
    monkeypatch.setattr("headway.scripts.benchmark.WARM_UP", 140)
    monkeypatch.setattr("headway.agents.core.nets.precision._gains", lambda device: True)
    small = ("--rounds", 1, "--updates", 2, "--steps", 4, "--threads", 1, "--json", "speed.json")
    precisions = ("--precision", "float32", "bfloat16", "--env", "Pendulum-v1")
    code, out, _ = headway("benchmark", "speed", "--agents", "dqn", "td3", *precisions, *small)
    assert code == 0
    found = json.loads(Path("speed.json").read_text())["measurements"]
    assert list(dict.fromkeys(m["agent"] for m in found)) == ["dqn", "td3", "td3 bfloat16"]
    assert len(found) == 3 * 2 * 2
    assert "CartPole-v1" in out
    assert torch.get_float32_matmul_precision() == "highest"
