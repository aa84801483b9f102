"""``headway mfg fit``, and what it reads."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from headway.scripts.mean_field.fit import read_counts
from mean_field_support import image
from safetensors.torch import load_file


def test_fit_recovers_what_was_planted(headway: Command) -> None:
    flags = ("--data-param", "days=4", "people=none", "--data-param", "d=4", "horizon=5", "--baselines", "var", "mean")
    code, out, err = headway("mfg", "fit", "synthetic", *flags, "--train", 3, "--no-progress", "--out", "run")
    assert code == 0, err
    assert "3 crowds fitted, 1 to test" in out
    assert re.search(r"popularity +planted 1.0000, recovered (1.000|0.999)", out)
    manifest = json.loads(Path("run/fit.json").read_text())
    assert manifest["scores"].keys() == {"reward", "var", "mean"}
    assert manifest["scores"]["reward"]["test"]["jsd_mean"] < 1e-6 < manifest["scores"]["mean"]["test"]["jsd_mean"]
    assert manifest["config"]["tau"] == 0.05
    found = load_file("run/fit.safetensors")
    assert abs(float(found["popularity"]) - 1) < 1e-3
    for name in ("recovered", "errors", "forecasts"):
        image(f"run/{name}.png")


def test_fit_of_counts_in_a_file(headway: Command) -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((5, 3, 2, 2))
    counts[:, 0] = rng.integers(1, 9, (5, 2, 2))
    for n in range(2):  # as many stay as arrived
        arrived = counts[:, n].sum(1)
        counts[:, n + 1, :, 0] = np.floor(arrived * 0.4)
        counts[:, n + 1, :, 1] = arrived - counts[:, n + 1, :, 0]
    np.savez("crowd.npz", counts=counts, labels=np.array(["in", "out"]))
    read = read_counts(Path("crowd.npz"))
    assert read.labels == ("in", "out")
    assert torch.allclose(read.pi.sum(-1), torch.ones(5, 4, dtype=torch.float64))
    assert torch.allclose(read.pi[0, 3], torch.from_numpy(counts[0, 2].sum(0) / counts[0, 2].sum()))
    flags = ("--model", "u", "--baselines", "persistence", "moves", "--seed", 3, "--param", "l2=0.01")
    code, out, err = headway("mfg", "fit", "crowd.npz", *flags, "--no-progress", "--out", "run")
    assert code == 0, err
    assert "4 crowds fitted, 1 to test" in out
    assert json.loads(Path("run/fit.json").read_text())["config"] == {"seed": 3, "terminal": "learned", "l2": 0.01}
    image("run/reward.png")


def test_files_that_are_no_counts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "crowd.npz"
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        read_counts(file)
    np.savez(file, count=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"has no array 'counts'.*it has count"):
        read_counts(file)
    np.savez(file, counts=np.ones((2, 3, 2)))
    with pytest.raises(ValueError, match="counts must be numbers"):
        read_counts(file)
    np.savez(file, counts=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_counts(file)


COUNTS = np.ones((2, 3, 2, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"counts": COUNTS, "labels": np.array("ab")}, r"labels must be a list of texts, got \(\) of <U2"),
        ({"counts": COUNTS, "names": np.ones(2)}, "names must be a list of texts, got .* of float64"),
        ({"counts": COUNTS, "labels": np.array(["a", None])}, "labels cannot be read: it holds Python objects"),
        ({"counts": COUNTS.astype(str)}, "counts must be numbers"),
        ({"counts": COUNTS * 1j}, "counts must be numbers .*complex128"),
        ({"counts": COUNTS, "pi": np.full((2, 4, 2), "x")}, "pi must be numbers .* of <U1"),
        ({"counts": COUNTS, "pi": np.full((2, 4, 2), 0.5j)}, "pi must be numbers .* of complex128"),
        ({"counts": -COUNTS}, r"counts must be finite and at least 0, got -1.0 at \(0, 0, 0, 0\)"),
        ({"counts": COUNTS * np.inf}, "counts must be finite and at least 0, got inf"),
        ({"counts": COUNTS * 0}, "counts hold no people at crowd and time"),
        ({"counts": COUNTS[:, :0]}, "each at least 1"),
    ],
)
def test_arrays_that_are_no_crowds_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "crowd.npz", **arrays)
    with pytest.raises(ValueError, match=f"crowd.npz.*{message}"):
        read_counts(tmp_path / "crowd.npz")


def test_a_renamed_npy_and_a_text_are_no_archives(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, COUNTS)
    (tmp_path / "b.npz").write_text("1,2\n")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as arrays: it is no .npz archive.*numpy\.savez"):
            read_counts(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "one.npz"), "there is one crowd: at least two are needed, some to fit and some to test"),
        (("fit", "synthetic", "--data-param", "days=1"), "there is one crowd"),
        (("fit", "synthetic", "--data-param", "peopel=10"), "synthetic has no parameter 'peopel': did you mean people"),
        (("fit", "mvad", "--data-param", "groups=3"), "mvad has no parameter 'groups'"),
        (("fit", "synthetic", "--data-param", "people=abc"), "people must be a whole number of at least 1, got abc"),
        (("fit", "synthetic", "--data-param", "people=1.5"), "people must be a whole number of at least 1, got 1.5"),
        (("fit", "synthetic", "--data-param", "people=-1"), "people must be a whole number of at least 1, got -1"),
        (("fit", "biofam", "--data-param", "groups=none"), "groups must be a whole number of at least 1, got None"),
        (("fit", "synthetic", "--data-param", "tau=1e999"), "tau must be a finite number, got inf"),
    ],
)
def test_mistakes_in_data_are_said_in_one_line(headway: Command, arguments: tuple[Any, ...], message: str) -> None:
    np.savez("one.npz", counts=COUNTS[0])
    code, out, err = headway("mfg", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not Path("runs").exists()
