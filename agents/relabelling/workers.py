"""Processes that do the same to many things, and end with the one that started them, however that ends."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

K = TypeVar("K")
A = TypeVar("A")
R = TypeVar("R")


class Workers(Generic[A, R]):
    """Some processes.

    Each is spoken to through a pipe of its own whose other end nobody else holds, so that it reads of the end of this
    process even if that was killed. Pools of the standard library go on for ever then.

    :param count: how many
    :param prepare: called in each, at first, with ``arguments``; returns what is done to each thing. A function of a
        module, as everything here must be fit for pickling
    :param arguments: for it
    """

    def __init__(self, count: int, prepare: Callable[..., Callable[[A], R]], arguments: tuple[Any, ...] = ()) -> None:
        self._count, self._setup = count, (prepare, arguments)

    def map(self, things: Mapping[K, A] | Iterable[tuple[K, A]]) -> Iterator[tuple[K, R]]:
        """Do it to many things.

        :param things: by key, or keys and things, perhaps without end
        :return: keys and results, in the order in which they are done
        :raises RuntimeError: a process ended, or raised something
        """
        context = multiprocessing.get_context("forkserver")  # a fork of this one would lack torch's threads
        left = iter(things.items() if isinstance(things, Mapping) else things)
        at_work: dict[Connection, K] = {}
        processes = []
        try:
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, *self._setup), daemon=True)
                process.start()
                theirs.close()
                processes.append((process, ours))
            for _, ours in processes:  # when all are starting: to give much waits for who takes it
                _give(ours, left, at_work)
            while at_work:
                for ready in wait(list(at_work)):
                    assert isinstance(ready, Connection)
                    yield at_work.pop(ready), _answer(ready)
                    _give(ready, left, at_work)
        finally:
            for process, ours in processes:
                ours.close()  # after which it ends
                process.terminate()
                process.join()


def _give(to: Connection, left: Iterator[tuple[K, A]], at_work: dict[Connection, K]) -> None:
    for key, thing in left:
        at_work[to] = key
        with contextlib.suppress(ConnectionError):  # which is told where the answer is read
            to.send(thing)
        return


def _answer(ready: Connection) -> Any:
    try:
        done, result = ready.recv()
    except (EOFError, ConnectionError) as cause:
        raise RuntimeError("a worker process was killed, for want of memory perhaps: use fewer workers") from cause
    if not done:
        raise RuntimeError(f"a worker process failed: {result}")
    return result


def _work(pipe: Connection, prepare: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started this, which ends this in turn
    with contextlib.suppress(EOFError, ConnectionError):
        do = prepare(*arguments)
        while True:
            thing = pipe.recv()
            try:
                answer: tuple[bool, Any] = True, do(thing)
            except Exception as error:
                answer = False, f"{type(error).__name__}: {error}"
            pipe.send(answer)
