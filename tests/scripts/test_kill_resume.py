"""A training process that is killed again and again ends as if it had been left alone."""

import shutil
from pathlib import Path

import pytest
from headway.scripts.cli import main
from kill_resume import CASES, compare, differences


def test_three_kills(tmp_path: Path) -> None:
    hits, found = compare(tmp_path, kills=3, seed=3, total=350, every=50)
    assert found == []
    assert [hit.moment for hit in hits] == ["stepping", "writing", "finishing"]
    assert hits[0].checkpoint == 0
    assert hits[1].torn
    assert hits[2].checkpoint == 350


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ten_kills_of_each_kind_of_run(tmp_path: Path, case: str) -> None:
    hits, found = compare(tmp_path, kills=10, seed=20, total=900, every=50, case=case)
    assert found == []
    assert len(hits) == 10
    assert len({hit.checkpoint for hit in hits}) > 4
    assert {"starting", "stepping", "writing", "finishing"} == {hit.moment for hit in hits}


def test_a_difference_would_be_found(tmp_path: Path) -> None:
    """The comparison itself: of equal runs, of runs with other seeds, and of a copy with one thing changed."""
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        tiny = "--env Pendulum-v1 --total-timesteps 60 --learning-starts 40 --batch-size 8 --net-arch 4 --log-every 50"
        quiet = "--threads 1 --no-progress --eval-episodes 1 --eval-every 20"
        flags = [*tiny.split(), *quiet.split(), "--seed", str(seed)]
        assert main(["train", "sac", *flags, "--run-dir", str(tmp_path / name)]) == 0
    assert differences(tmp_path / "one", tmp_path / "two") == []
    found = " ".join(differences(tmp_path / "one", tmp_path / "three"))
    for part in ("final.zip", "evaluations.csv", "progress.csv", "TensorBoard", "store", "networks", "generators"):
        assert part in found

    changed = shutil.copytree(tmp_path / "one", tmp_path / "changed")
    lines = (changed / "progress.csv").read_text().splitlines(keepends=True)
    (changed / "progress.csv").write_text("".join([*lines, lines[-1]]))
    (changed / "checkpoints" / ".checkpoint-000000000060.zip.tmp-1").touch()
    assert differences(tmp_path / "one", changed) == ["progress.csv differs", f"{changed} holds half a file"]
