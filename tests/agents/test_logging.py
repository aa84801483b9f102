import csv
from pathlib import Path

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


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ["a", "b"], [[1, "x, y"], [2, ""]])
    whole = [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
    assert read_csv(path) == whole
    with path.open("a") as file:
        file.write("3,hal")
    assert read_csv(path) == whole
