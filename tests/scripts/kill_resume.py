"""Kill a training process with SIGKILL at random moments, resume it each time, and compare with a run left alone.

As a program: ``python tests/scripts/kill_resume.py --cases sac dcac --kills 20`` prints every kill and the differences,
if any; without flags, ten kills of each kind of run.
"""

import argparse
import csv
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from headway.agents import SAC
from headway.agents.core.files import list_checkpoints, read_archive, unpack
from headway.envs import make_batched
from headway.envs.mujoco.randomise import scale
from headway.scripts.cli import main
from headway.wrappers import BatchedVecEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SERVER = multiprocessing.get_context("forkserver")

CLOCK = ("time/fps", "time/time_elapsed")
"""Columns that tell how long something took."""

MOMENTS = ("starting", "stepping", "writing")
"""A kill comes while the process starts and loads, at any moment after that, or while a checkpoint is being written."""

SMALL = ["--env", "Hopper-v5", "--net-arch", "16", "16", "--batch-size", "32", "--learning-starts", "100"]
SMALL += ["--eval-episodes", "2", "--threads", "1", "--no-progress"]
"""A run that is small in every respect; Hopper's first episodes are short, so many of them end."""


@dataclass(frozen=True)
class Case:
    """A kind of run.

    :param agent: its name
    :param flags: of a command
    :param env: makes the environment of a script instead; what it draws depends on the agent's seed
    """

    agent: str = "sac"
    flags: Sequence[str] = ()
    env: Callable[[], Any] | None = None


def _normalised() -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("Hopper-v5")) for _ in range(2)]))


def _randomised() -> BatchedVecEnv:
    masses = {"body_mass": scale(0.8, 1.2), "geom_friction": scale(0.5, 1.5)}
    return BatchedVecEnv(make_batched("headway/Hopper-v5", 3, randomise=masses))


ON_POLICY = ["--env", "Hopper-v5", "--net-arch", "16", "--n-steps", "64", "--batch-size", "32", "--n-epochs", "3"]
ON_POLICY += ["--eval-episodes", "2", "--threads", "1", "--no-progress"]

CASES = {
    "sac": Case("sac", SMALL),
    "td3": Case("td3", SMALL),
    "ppo": Case("ppo", ON_POLICY),
    "dcac": Case("dcac", [*SMALL, "--delay", "uniform:0-2,uniform:0-1"]),
    "normalised": Case(env=_normalised),
    "randomised": Case(env=_randomised),
}


class Saves(BaseCallback):
    """Saves a script's checkpoints.

    :param folder: where to
    :param every: so many steps
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__()
        self.folder, self.every = folder, every

    def _on_step(self) -> bool:
        assert isinstance(self.model, SAC)
        before = self.num_timesteps - self.training_env.num_envs
        if self.num_timesteps // self.every > before // self.every:
            self.model.save_checkpoint(self.folder)
        return True


def script(folder: Path, make: Callable[[], Any], seed: int, total: int, every: int) -> None:
    """Train as a user's script does, from the newest checkpoint if there is one.

    :param folder: the run's
    :param make: its environment
    :param seed: of the agent
    :param total: steps
    :param every: steps between checkpoints
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    if list_checkpoints(checkpoints):
        agent = SAC.resume(checkpoints, make(), device="cpu")
    else:
        agent = SAC("MlpPolicy", make(), seed=seed, net_arch=(16, 16), batch_size=32, learning_starts=100, device="cpu")
    (folder / STARTED).touch()
    fresh = agent.num_timesteps == 0
    agent.learn(total - agent.num_timesteps, Saves(checkpoints, every), reset_num_timesteps=fresh)
    agent.save_checkpoint(checkpoints)
    time.sleep(0.3)  # a kill may come between the end of training and the policy
    agent.save(folder / "final.zip")


STARTED = "progress.csv"
"""A file that is there as soon as there is something to kill."""


@dataclass(frozen=True)
class Kill:
    """What a kill hit.

    :param moment: one of ``MOMENTS``, or "finishing"
    :param checkpoint: step of the newest checkpoint, 0 if there was none
    :param torn: a file was half written
    """

    moment: str
    checkpoint: int
    torn: bool


def launch(arguments: Sequence[str], output: Path) -> BaseProcess:
    """Start ``headway`` in a process of its own, forked from a server that has torch: nobody waits for imports.

    :param arguments: of the command
    :param output: a file for what it writes
    :return: the process, started
    """
    process = SERVER.Process(target=_headway, args=(arguments, output.absolute(), Path.cwd(), dict(os.environ)))
    process.start()
    return process


def _into(output: Path, folder: Path, environment: dict[str, str]) -> None:
    os.chdir(folder)  # the server has its own
    os.environ.update(environment)
    with output.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def _headway(arguments: Sequence[str], *place: Any) -> None:
    _into(*place)
    sys.exit(main(list(arguments)))


def _script(arguments: Sequence[Any], *place: Any) -> None:
    _into(*place)
    script(*arguments)


def commands(case: Case, seed: int, total: int, every: int) -> Callable[[Path], BaseProcess]:
    """:return: what starts a run in a folder, or goes on with it if there is something to go on with."""

    def start(folder: Path) -> BaseProcess:
        output = folder.with_name("output.txt")
        if case.env is not None:
            place = (output.absolute(), Path.cwd(), dict(os.environ))
            process = SERVER.Process(target=_script, args=((folder, case.env, seed, total, every), *place))
            process.start()
            return process
        arguments = [*case.flags, *spread(seed, total, every)]
        command = ["--resume", str(folder)] if folder.exists() else ["--run-dir", str(folder), *arguments]
        return launch(["train", case.agent, *command], output)

    return start


def spread(seed: int, total: int, every: int) -> list[str]:
    """:return: flags that spread what is written over a run"""
    flags = ["--checkpoint-every", str(every), "--log-every", str(every * 2 // 3), "--eval-every", str(every * 4)]
    return [*flags, "--total-timesteps", str(total), "--seed", str(seed)]


def finish(process: BaseProcess, output: Path) -> None:
    """Wait for the end of a run that nobody kills.

    :raises RuntimeError: it failed
    """
    process.join()
    if process.exitcode:
        raise RuntimeError(f"exit code {process.exitcode}: {output.read_text()}")


def newest(folder: Path) -> int:
    """:return: step of the newest checkpoint, 0 if there is none."""
    found = list_checkpoints(folder / "checkpoints")
    return int(found[0].stem.rpartition("-")[2]) if found else 0


def being_written(folder: Path) -> list[str]:
    """:return: files that are not complete yet."""
    return [path.name for path in folder.rglob(".*.tmp*")]


def wait(process: BaseProcess, condition: Callable[[], object]) -> None:
    """Watch closely until something is the case; it is also over when the process is."""
    while not condition() and process.is_alive():
        time.sleep(0.0005)


def run_with_kills(
    folder: Path, start: Callable[[Path], BaseProcess], kills: int, seed: int, total: int, every: int
) -> list[Kill]:
    """Run to the end in spite of so many kills.

    They are spread over the steps of the run: the first comes before the first checkpoint, the last while the run is
    being finished, the moments of the others are drawn.

    :param folder: the run's folder
    :param start: starts it, or goes on with it
    :param kills: how many, two at least
    :param seed: of the moments
    :param total: steps of the run
    :param every: steps between checkpoints
    :return: what was hit
    """
    rng = random.Random(seed)
    steps = [0, *sorted(rng.randrange(1, total - 2 * every) for _ in range(kills - 2)), total]
    hits = []
    for number, step in enumerate(steps):
        last = number == kills - 1
        moment = "finishing" if last else MOMENTS[(number + 1) % 3] if number < 3 else rng.choice(MOMENTS)
        hits.append(kill(folder, start, moment, step, rng))
    finish(start(folder), folder.with_name("output.txt"))
    return hits


def kill(folder: Path, start: Callable[[Path], BaseProcess], moment: str, step: int, rng: random.Random) -> Kill:
    """Start, or go on, and kill. On a busy machine this can come too late: then it is undone and tried again."""
    before = folder.with_name("before")
    for _ in range(10):
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, before)
        process = start(folder)
        strike(process, folder, moment, step, rng)
        process.kill()
        process.join()
        hit = Kill(moment, newest(folder), bool(being_written(folder)))
        late = hit.checkpoint > 0 if step == 0 else moment == "writing" and not hit.torn
        if process.exitcode == -signal.SIGKILL and not late:
            return hit
        shutil.rmtree(folder, ignore_errors=True)
        if before.exists():
            before.rename(folder)
    raise RuntimeError(
        f"a kill ({moment}, step {step}) came too late ten times; the last exit code was {process.exitcode}"
    )


def strike(process: BaseProcess, folder: Path, moment: str, step: int, rng: random.Random) -> None:
    """Wait until it is time to kill."""
    if moment == "starting":
        time.sleep(rng.uniform(0, 0.3))
    elif step == 0:  # before the first checkpoint, but after something is there
        wait(process, lambda: (folder / STARTED).exists())
        time.sleep(rng.uniform(0, 0.1))
    else:
        wait(process, lambda: newest(folder) >= step)
        if moment == "writing":
            wait(process, lambda: being_written(folder / "checkpoints"))
        else:
            time.sleep(rng.uniform(0, 0.2))


def differences(one: Path, two: Path, *, scalars: bool = True) -> list[str]:
    """Compare two runs.

    :param one: a run's folder
    :param two: another's
    :param scalars: compare TensorBoard's too; their files sort by seconds, so runs within one second confuse it
    :return: a line for each thing that is not the same
    """
    found = [
        f"{name} differs" for name in ("final.zip", "best.zip", "evaluations.csv") if not _same_file(one, two, name)
    ]
    if _progress(one) != _progress(two):
        found.append("progress.csv differs")
    if scalars and _scalars(one) != _scalars(two):
        found.append("TensorBoard's scalars differ")
    names = [[path.name for path in list_checkpoints(run / "checkpoints")] for run in (one, two)]
    if names[0] != names[1]:
        return [*found, f"checkpoints differ: {names[0]}, {names[1]}"]
    left = [run for run in (one, two) if being_written(run)]
    found += [f"{run} holds half a file" for run in left]
    return found + _tree_differences(*(_training(run) for run in (one, two)), "checkpoint")


def _same_file(one: Path, two: Path, name: str) -> bool:
    contents = [(run / name).read_bytes() if (run / name).exists() else None for run in (one, two)]
    return contents[0] == contents[1]  # scripts do not have them all


def _progress(run: Path) -> list[dict[str, str]]:
    with (run / "progress.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def _scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # that steps come again is what is expected
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in CLOCK]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def _training(run: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint but what the clock said."""
    archive = read_archive(list_checkpoints(run / "checkpoints")[0])
    manifest = {key: value for key, value in archive.manifest.items() if key not in ("parts", "files")}
    parts = {name: unpack(tree, archive.members[name]) for name, tree in archive.manifest["parts"].items()}
    for episode in parts["episodes"]["infos"]:
        del episode["t"]
    del parts["environment"]  # holds the Monitor's clock; that the episodes to come are the same shows elsewhere
    return {"manifest": manifest, "parts": parts, "networks": archive.members["networks"]}


def _tree_differences(one: Any, two: Any, path: str) -> list[str]:
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [line for key in one for line in _tree_differences(one[key], two[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and type(one) is type(two) and len(one) == len(two):
        return [
            line
            for i, pair in enumerate(zip(one, two, strict=True))
            for line in _tree_differences(*pair, f"{path}/{i}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if torch.equal(one, two) else [f"{path} differs"]
    same = bool((one == two).all()) if hasattr(one, "shape") and hasattr(two, "shape") else one == two
    return [] if same else [f"{path} differs"]


def compare(
    folder: Path, kills: int, seed: int, total: int, every: int, case: str = "sac"
) -> tuple[list[Kill], list[str]]:
    """Make a run that is left alone, in this process, and one that is killed, and compare them.

    :param folder: where to put both
    :param kills: how many
    :param seed: of the moments, and of the run
    :param total: steps of the run
    :param every: steps between checkpoints
    :param case: which of ``CASES``
    :return: what was hit, and the differences
    """
    kind, alone = CASES[case], folder / "alone"
    if kind.env is not None:
        script(alone, kind.env, seed, total, every)
    elif main(["train", kind.agent, *kind.flags, *spread(seed, total, every), "--run-dir", str(alone)]):
        raise RuntimeError("the run that is left alone failed")
    hits = run_with_kills(folder / "killed", commands(kind, seed, total, every), kills, seed, total, every)
    found = differences(alone, folder / "killed", scalars=kind.env is None)
    if kind.env is not None:  # what a killed writer leaves behind is cleared after an hour, where no command does it
        found = [line for line in found if not line.endswith("half a file")]
    return hits, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--kills", type=int, default=10, help="of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-timesteps", type=int, default=900)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    multiprocessing.set_forkserver_preload(["headway.scripts.train", "kill_resume"])
    all_differences: list[str] = []
    for name in given.cases:
        with tempfile.TemporaryDirectory() as temporary:
            began = time.time()
            all_hits, found_differences = compare(
                Path(temporary), given.kills, given.seed, given.total_timesteps, 50, name
            )
            for number, hit in enumerate(all_hits):
                print(f"kill {number}: {hit.moment}, newest checkpoint {hit.checkpoint}, half a file: {hit.torn}")
            print(f"{name}: {len(all_hits)} kills in {time.time() - began:.0f} s")
            print("\n".join(found_differences) or "no difference from the run left alone", flush=True)
            all_differences += found_differences
    sys.exit(1 if all_differences else 0)
