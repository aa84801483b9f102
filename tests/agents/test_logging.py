import csv
from pathlib import Path

import pytest
import torch
from headway.agents.core.logging import CSVFile, Metrics, read_csv, run_logger, write_csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_means_and_survive_a_save() -> None:
    metrics, resumed = Metrics(), Metrics()
    value = torch.tensor(1.0)
    metrics.add({"a": value})
    value.fill_(100.0)  # what is added later must not change what was added
    metrics.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0)})
    resumed.load_state(metrics.state())
    metrics.add({"a": torch.tensor(6.0)})
    resumed.add({"a": torch.tensor(6.0)})
    assert metrics.flush() == resumed.flush() == {"a": 3.0, "b": 5.0}
    assert metrics.flush() == {}


def test_csv_grows_columns_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    first = CSVFile(path, "step")
    first.append({"step": 1, "a": 0.5})
    first.append({"step": 2, "b": "x,y"})
    first.append({"step": 3, "a": 1.5})
    assert rows(path)[1] == {"step": "2", "a": "", "b": "x,y"}
    with path.open("a") as file:
        file.write("4,2.")  # torn by a kill
    second = CSVFile(path, "step", keep_until=2)
    second.append({"step": 3, "a": 9.0})
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"]
    assert rows(path)[2] == {"step": "3", "a": "9.0", "b": ""}


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    for keep_until, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        logger = run_logger(tmp_path, keep_until=keep_until)
        for step in steps:
            logger.record("time/total_timesteps", step, exclude="tensorboard")
            logger.record("x", float(step + keep_until))
            logger.dump(step)
        logger.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("x")
    assert [(event.step, event.value) for event in events] == [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0)]
    assert [row["x"] for row in rows(tmp_path / "progress.csv")] == ["10.0", "20.0", "50.0", "60.0"]


WHOLE = b"step,a\r\n10,1.5\r\n20,2.5\r\n30,3.5\r\n"

DAMAGES: dict[str, tuple[bytes, list[str]]] = {
    "a block of zeros": (b"step,a\r\n10,1.5\r\n" + bytes(8) + b"\r\n30,3.5\r\n", ["10", "30"]),
    "zeros at the end": (WHOLE[:24] + bytes(20) + b"\n", ["10", "20"]),
    "a byte that is no text": (WHOLE.replace(b"2.5", b"\xff.5"), ["10", "30"]),
    "a line break lost": (WHOLE.replace(b"1.5\r\n", b"1.5"), ["30"]),
    "half a row": (WHOLE.replace(b"20,2.5", b"20"), ["10", "30"]),
    "a step that is none": (WHOLE.replace(b"20,", b"2x,"), ["10", "30"]),
    "an empty line": (WHOLE.replace(b"20,2.5", b""), ["10", "30"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_told_and_kept_beside(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, steps = DAMAGES[damage]
    path = tmp_path / "progress.csv"
    path.write_bytes(data)
    table = CSVFile(path, "step", keep_until=30)
    assert [row["step"] for row in rows(path)] == steps
    assert all(row["a"] == f"{int(row['step']) / 10 + 0.5}" for row in rows(path))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{path}: ")
    assert said.endswith(f"rows are damaged and left out; {path}.damaged holds them")
    assert Path(f"{path}.damaged").read_bytes() == data
    table.append({"step": 40, "a": 4.5})
    assert rows(path)[-1] == {"step": "40", "a": "4.5"}
    caplog.clear()
    assert len(CSVFile(path, "step", keep_until=40).rows) == len(steps) + 1
    assert caplog.text == ""


@pytest.mark.parametrize(
    "data", [b"", bytes(30), bytes(30) + b"\r\n", b"st" + WHOLE[3:], WHOLE[8:], b"\xff" + WHOLE, b"step,a"]
)
def test_a_table_without_the_names_of_its_columns_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"evaluations.csv is damaged: its first line does not name the columns"):
        CSVFile(path, "step", keep_until=30)
    assert path.read_bytes() == data


def test_a_new_or_empty_table_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert CSVFile(tmp_path / "a.csv", "step", keep_until=30).rows == []
    (tmp_path / "b.csv").touch()
    CSVFile(tmp_path / "b.csv", "step").append({"step": 1})
    assert caplog.text == ""


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ["a", "b"], [[1, "x, y"], [2, ""]])
    whole = [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
    assert read_csv(path) == whole
    with path.open("a") as file:
        file.write("3,hal")
    assert read_csv(path) == whole
