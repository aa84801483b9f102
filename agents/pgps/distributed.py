"""Members that play on many machines: workers of Ray, each with a batch of the environment."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...envs.batched import BatchedEnv, RowSnapshots, require
from ..core.data import Episodes
from ..core.files.errors import one_line
from ..core.nets import Actor
from ..core.spaces import ObservationCodec, actions_of
from .population import Population, evaluate

LOSSES = 3
"""Workers that may be lost in a generation. Our choice."""

ANSWER = 30.0
"""Seconds in which a cluster has to answer. Our choice."""

POLL = 0.2
"""Seconds between questions whether the run shall stop. Our choice."""

log = logging.getLogger("headway")


def check_workers(agent: str, workers: int | None, address: str | None) -> None:
    """See that members can play in so many workers, as far as that is known without any.

    :param agent: its class's name
    :param workers: how many; None and 0: none
    :param address: of a Ray cluster
    :raises ValueError: a number out of range, an address without workers, or Ray is not installed
    """
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ValueError(f"{agent}'s workers must be a whole number of at least 0, got {workers!r}")
    if not workers and address is not None:
        raise ValueError(f"ray_address={address!r} says where workers are: say how many, workers=4")
    if workers:
        _ray(agent)


def _ray(agent: str) -> Any:
    try:
        import ray
    except ImportError as cause:
        raise ValueError(f"{agent} with workers needs Ray: pip install 'headway-rl[distributed]'") from cause
    return ray


class Player:
    """What a worker is: it has an environment, and lets members play in it.

    :param paths: where modules are looked for besides
    :param kit: a batch, an actor of the members' architecture, and the codec, pickled so that they can be written to
    """

    def __init__(self, paths: list[str], kit: bytes) -> None:
        sys.path += [path for path in paths if path not in sys.path]
        torch.set_num_threads(1)
        self.kit = kit

    @cached_property
    def _tools(self) -> tuple[BatchedEnv, Actor, ObservationCodec]:
        from ray import cloudpickle

        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})  # MuJoCo takes a thread for each that it finds
        try:
            tools: tuple[BatchedEnv, Actor, ObservationCodec] = cloudpickle.loads(self.kit)
        except ImportError as cause:
            raise ValueError(
                f"the worker on {socket.gethostname()} lacks a module ({cause}): install it there"
            ) from cause
        finally:
            os.sched_setaffinity(0, processors)
        return tools

    def play(self, members: Tensor, of_many: bool, episodes: int, horizon: int, seed: int) -> Episodes:
        """See :func:`~headway.agents.pgps.population.evaluate`."""
        env, single, codec = self._tools
        actions = actions_of(env.single_action_space, torch.device("cpu"), True)
        population = Population(single, members.clone(), of_many)
        how: dict[str, Any] = {"episodes": episodes, "horizon": horizon, "seed": seed, "keep": True}
        return evaluate(population, env, codec, actions, **how)[1]


class Workers:
    """Workers of Ray, from now until :meth:`close`.

    :param agent: name of the agent's class
    :param count: how many there are
    :param address: of a Ray cluster; None: where Ray is connected to, or RAY_ADDRESS says, or else on this machine
    :param env: the batch that they play in copies of
    :param single: an actor of the members' architecture
    :param codec: of its observations
    :param rows: episodes that a worker plays at a time
    :raises TypeError: the batch cannot be copied; the message says why
    :raises ValueError: it cannot be sent to them
    :raises ConnectionError: the cluster does not answer
    """

    def __init__(
        self,
        agent: str,
        count: int,
        address: str | None,
        env: BatchedEnv,
        single: Actor,
        codec: ObservationCodec,
        rows: int,
    ) -> None:
        self.ray = _ray(agent)
        if env.device.type != "cpu":
            raise ValueError(f"workers play on the CPU, the environment is on {env.device}: make it on the CPU")
        copies = require(env, RowSnapshots).like(rows)
        self.actors: list[Any] = []
        self.connects = not self.ray.is_initialized()
        if self.connects:
            _connect(self.ray, count, address)
        elif address not in (None, here := self.ray.get_runtime_context().gcs_address):
            raise ValueError(f"ray_address is {address}, and Ray is connected to {here} already: leave it out")
        try:
            self.kit = self.ray.put(self.ray.cloudpickle.dumps((copies, single, codec)))
        except Exception as cause:  # of the environment's own code, perhaps
            self.close()
            raise ValueError(
                f"{type(env).__name__} cannot be sent to workers ({type(cause).__name__}: {one_line(str(cause))}): "
                "give what it holds __reduce__, or leave workers out"
            ) from cause
        if (there := int(self.ray.cluster_resources().get("CPU", 0))) < count:
            log.warning("Ray has %d processors for %d workers, which take one each: some wait for more", there, count)
        self.actors += [self._start() for _ in range(count)]

    def _start(self) -> Any:
        return self.ray.remote(num_cpus=1, max_restarts=0)(Player).remote(sys.path, self.kit)

    def play(
        self, members: Tensor, episodes: int, horizon: int, seed: int, stops: Callable[[], bool]
    ) -> Episodes | None:
        """Let members play; those of a worker that is lost play again in a new one.

        :param members: (P, D), on the CPU
        :param episodes: of each, E
        :param horizon: where they are cut
        :param seed: of the first
        :param stops: whether to stop waiting; asked a few times a second
        :return: all P E episodes, of which each is the same wherever it was played; None: it was to stop
        :raises ConnectionError: too many workers were lost
        :raises ValueError: an episode was interrupted, which cannot be shown as one
        """
        ray, parts = self.ray, members.tensor_split(min(len(self.actors), len(members)))
        seeds = torch.tensor([0, *map(len, parts)]).cumsum(0) * episodes + seed

        def send(place: int) -> Any:
            return self.actors[place].play.remote(
                parts[place].clone(), len(members) > 1, episodes, horizon, int(seeds[place])
            )

        waiting = {send(place): place for place in range(len(parts))}
        played: dict[int, Episodes] = {}
        lost = 0
        while waiting:
            if stops():
                return None
            for answer in ray.wait(list(waiting), num_returns=1, timeout=POLL)[0]:
                place = waiting.pop(answer)
                try:
                    played[place] = ray.get(answer)
                except ray.exceptions.RayTaskError as failed:  # what the environment raised
                    raise (failed.cause if isinstance(failed.cause, Exception) else failed) from failed
                except ray.exceptions.RayActorError as cause:
                    lost, why = lost + 1, one_line(str(cause))
                    if lost > LOSSES:
                        raise ConnectionError(
                            f"workers were lost in a generation, {lost} of them, the last one so: {why}"
                        ) from cause
                    log.warning("a worker was lost, and its members play again in a new one: %s", why)
                    self.actors[place] = self._start()
                    waiting[send(place)] = place
        all_of_them = Episodes.join([played[place] for place in range(len(parts))])
        assert all_of_them.steps is not None
        if int(all_of_them.steps["starts"].sum()) != len(all_of_them.lengths):
            raise ValueError(
                "an environment restarts in the midst of what its Monitor counts as one episode (a lost life, a time "
                "limit around the Monitor): put the Monitor outermost, or leave workers out"
            )
        return all_of_them

    def close(self) -> None:
        """End the workers, and Ray where it was started for them."""
        if self.connects:
            self.ray.shutdown()
            return
        for actor in self.actors:
            self.ray.kill(actor)


def _connect(ray: Any, count: int, address: str | None) -> None:
    """Connect to a cluster, or start Ray on this machine."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_answers(address)
    here: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if address is None else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked it to report
    handler, is_main = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, **here)
    except (RuntimeError, OSError, ValueError) as cause:
        raise ConnectionError(f"Ray at {address or 'this machine'} does not answer: {one_line(str(cause))}") from cause
    finally:
        if is_main:  # where Ray puts its own in the place of ours
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Ask a cluster for its state, in another process: Ray itself waits for minutes, and cannot be interrupted."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        if not address.startswith("ray://"):  # whose client gives up by itself, after half a minute
            subprocess.run(command, capture_output=True, timeout=ANSWER, start_new_session=True, check=True)
    except (OSError, OverflowError, subprocess.SubprocessError) as cause:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({one_line(str(cause))}): start one with `ray start --head`, or "
            "leave ray_address out to use this machine"
        ) from cause
