"""What the tests of the command line share."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from headway.scripts.cli import main

sys.path.insert(0, str(Path(__file__).parent))  # for kill_resume, which is also a program

Command = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """Who runs the tests in the background, by nohup for one, has Ctrl-C ignored by all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs are made below the working folder; films need no screen; --threads outlives its run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("MUJOCO_GL", "")  # so that it is as before at the end, whatever --video makes of it
    monkeypatch.delenv("MUJOCO_GL")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def headway(capsys: pytest.CaptureFixture[str]) -> Command:
    """The console command, called in this process; gives its exit code and what it wrote to stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
