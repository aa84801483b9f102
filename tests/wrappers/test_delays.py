"""Laws of delays: what they draw, how they are written, what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headway.wrappers import delays
from headway.wrappers.delays import (
    UNIFORMS,
    Categorical,
    Constant,
    Delay,
    Geometric,
    Markov,
    PerEpisode,
    Trace,
    Uniform,
    WiFi,
    age_law,
    law_table,
    parse,
    parse_pair,
)
from hypothesis import given
from hypothesis import strategies as st

BURSTS = Markov(((0.9, 0.1), (0.3, 0.7)), (Uniform(0, 1), Categorical((0.25, 0.75), 3)))
LAWS: list[Delay] = [
    Constant(0),
    Constant(3),
    Uniform(0, 3),
    Uniform(2, 2),
    WiFi(),
    Categorical((0, 0.2, 0.5, 0, 0.3, 0), 1),
    Geometric(0.4, 6),
    PerEpisode(Uniform(0, 3)),
    PerEpisode(BURSTS),
    BURSTS,
    Trace((1, 0, 2), wrap=True),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(shares: torch.Tensor, probs: Any, count: int) -> bool:
    """Whether shares of so many independent draws lie within 4.5 standard errors."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    return bool(((shares - probs).abs() <= 4.5 * (probs * (1 - probs) / count).sqrt() + 1e-12).all())


def shares(drawn: torch.Tensor, law: Delay) -> torch.Tensor:
    return drawn.flatten().bincount(minlength=law.max + 1).double() / drawn.numel()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_draws_stay_in_range_and_follow_the_table(law: Delay) -> None:
    drawn = law.sample((4000, 5), seeded())
    assert drawn.shape == (4000, 5)
    assert drawn.dtype == torch.int64
    assert drawn.min() == law.min
    assert drawn.max() == law.max
    if not isinstance(law, (Trace, Markov)) and "markov" not in str(law):  # whose tables are simulated
        assert close(shares(drawn[:, 0], law), law_table(law), 4000)
        assert close(shares(drawn[:, 4], law), law_table(law), 4000)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_edges_of_the_unit_interval_draw_possible_delays(law: Delay) -> None:
    edges = [0.0, 0.2, 0.2 + 2**-53, 0.7, 1 - 2**-53]
    u = torch.tensor([(a, b) for a in edges for b in edges], dtype=torch.float64)
    drawn, _ = law.draw(u, torch.zeros(len(u), dtype=torch.int64), torch.zeros(len(u), dtype=torch.int64))
    possible = set(law_table(law).nonzero().flatten().tolist())
    assert set(drawn.tolist()) <= possible


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_one_row_draws_what_many_draw(law: Delay) -> None:
    u = torch.rand(40, 30, UNIFORMS, dtype=torch.float64, generator=seeded())
    memory, alone = torch.zeros(40, dtype=torch.int64), [0] * 40
    start = torch.arange(40) % 3  # rows in different ticks of their episodes
    for t in range(30):
        tick = (start + t) % 11
        drawn, memory = law.draw(u[:, t], tick, memory)
        for row in range(40):
            one, alone[row] = law.draw_one(u[row, t].tolist(), int(tick[row]), alone[row])
            assert one == drawn[row]
        plain = Delay.draw_one(law, u[0, t].tolist(), int(tick[0]), 0)
        assert plain == law.draw_one(u[0, t].tolist(), int(tick[0]), 0)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_forms_read_back_as_the_same_law(law: Delay) -> None:
    again = parse(str(law))
    assert again == law
    assert str(again) == str(law)
    assert torch.equal(again.sample((3, 20), seeded()), law.sample((3, 20), seeded()))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda p: sum(p) > 0.01), st.integers(0, 4))
def test_any_table_reads_back_and_keeps_its_bounds(weights: list[float], start: int) -> None:
    law = Categorical(tuple(w / sum(weights) for w in weights), start)
    assert parse(str(law)) == law
    drawn = law.sample((50,), seeded())
    assert law.min <= drawn.min()
    assert drawn.max() <= law.max
    assert math.isclose(float(law_table(law).sum()), 1)
    assert math.isclose(float(age_law(law).sum()), 1)


def test_samples_follow_the_generator_alone() -> None:
    law = WiFi()
    assert torch.equal(law.sample((2, 3, 40), seeded(1)), law.sample((2, 3, 40), seeded(1)))
    assert not torch.equal(law.sample((240,), seeded(1)), law.sample((240,), seeded(2)))


def test_an_episode_keeps_its_delay() -> None:
    drawn = PerEpisode(Uniform(0, 3)).sample((2000, 6), seeded())
    assert (drawn == drawn[:, :1]).all()
    assert close(shares(drawn[:, 0], Uniform(0, 3)), [0.25] * 4, 2000)
    again, _ = PerEpisode(Uniform(0, 3)).draw(
        torch.full((4, 2), 0.9, dtype=torch.float64), torch.tensor([0, 1, 0, 5]), torch.tensor([1, 1, 2, 2])
    )
    assert again.tolist() == [3, 1, 3, 2]  # drawn anew only in the first tick


def test_a_chain_starts_in_its_stationary_distribution_and_moves_by_its_table() -> None:
    rows = 40000
    drawn = BURSTS.sample((rows, 4), seeded())
    bad = (drawn >= 3).double()  # the second regime draws 3 and 4, the first 0 and 1: the regime shows
    for t in range(4):
        assert abs(bad[:, t].mean() - 0.25) < 4.5 * (0.25 * 0.75 / rows) ** 0.5  # 0.1 / (0.1 + 0.3)
    came, left = bad[:, 1:][bad[:, :-1] == 0], bad[:, 1:][bad[:, :-1] == 1]
    assert abs(came.mean() - 0.1) < 4.5 * (0.1 * 0.9 / len(came)) ** 0.5
    assert abs(left.mean() - 0.7) < 4.5 * (0.7 * 0.3 / len(left)) ** 0.5
    assert abs((drawn[bad == 1] == 4).double().mean() - 0.75) < 4.5 * (0.75 * 0.25 / bad.sum()) ** 0.5


@pytest.mark.parametrize("table", [((1, 0), (0, 1)), ((0, 1), (1, 0)), ((1, 0), (0.5, 0.5))])
def test_chains_without_a_single_limit_start_somewhere_that_stays(table: Any) -> None:
    law = Markov(table, (Constant(0), Constant(1)))
    drawn = law.sample((4000, 3), seeded()).double().mean(0)
    expected = 0.0 if table[1][0] == 0.5 else 0.5
    assert ((drawn - expected).abs() < 4.5 * (0.25 / 4000) ** 0.5).all()


def test_rows_of_a_chain_are_scaled_to_one() -> None:
    law = Markov(((0.9995, 0), (0.1, 0.9)), (Constant(0), Constant(1)))
    assert law.draw_one((0.9999, 0), 0, 0)[0] == 0  # nothing leads out of the first regime: every episode starts there


def test_a_trace_plays_from_the_first_tick_and_says_when_it_has_run_out() -> None:
    assert Trace((1, 0, 2)).sample((2, 3)).tolist() == [[1, 0, 2]] * 2
    assert Trace([1, 0, 2], wrap=True).sample((7,)).tolist() == [1, 0, 2, 1, 0, 2, 1]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of 3 delays has run out at tick 3"):
        Trace((1, 0, 2)).sample((4,))
    with pytest.raises(ValueError, match="has run out at tick 3"):
        Trace((1, 0, 2)).draw_one((0.5, 0.5), 3, 0)


def test_traces_are_read_from_files(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time,delay\n0.00, 1\n0.02,0\n\n0.04,2\n")
    law = parse(f"trace:{path}")
    assert law == Trace((1, 0, 2))
    assert str(law) == f"trace:{path}"
    assert parse(f"trace-wrap:{path}") == Trace((1, 0, 2), wrap=True)
    path.write_text("3\n4\n")
    assert parse(f"trace:{path}") == Trace((3, 4))
    for text, found in (
        ("1\n2.5\n", "entry 2 is '2.5'"),
        ("delay\n-1\n", "entry 1 is '-1'"),
        ("", "must not be empty"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=found):
            parse(f"trace:{path}")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        parse(f"trace:{path}")


def test_the_measured_table() -> None:
    assert (WiFi().min, WiFi().max) == (1, 4)
    assert law_table(WiFi()).tolist() == pytest.approx([0, 0.3082, 0.5927, 0.0829, 0.0162])
    assert age_law(WiFi()).tolist() == pytest.approx([0, 0.308, 0.623, 0.068, 0.001], abs=6e-4)
    age = float(age_law(WiFi()) @ torch.arange(5.0, dtype=torch.float64))
    assert age == pytest.approx(1.763, abs=2e-3)  # the spec's reading of a simulation; the product gives 1.7615


@pytest.mark.parametrize(
    ("law", "ages"),
    [
        (Uniform(0, 1), [1 / 2, 1 / 2]),
        (Uniform(0, 2), [1 / 3, 4 / 9, 2 / 9]),
        (Constant(2), [0, 0, 1]),
        (PerEpisode(Uniform(1, 2)), [0, 1 / 2, 1 / 2]),
        (Trace((0, 3, 3, 1)), [0, 0, 0, 1]),  # one tick lies past the longest delay, and packet 0 is the newest there
    ],
    ids=str,
)
def test_age_laws(law: Delay, ages: list[float]) -> None:
    assert age_law(law).tolist() == pytest.approx(ages)


def test_simulated_laws_agree_with_exact_ones() -> None:
    same = Markov(((0.5, 0.5), (0.5, 0.5)), (WiFi(), WiFi()))  # the same law, but simulated
    assert law_table(same).tolist() == pytest.approx(law_table(WiFi()).tolist(), abs=0.004)  # 200,000 draws: 3.5 errors
    assert age_law(same).tolist() == pytest.approx(age_law(WiFi()).tolist(), abs=0.006)
    assert torch.equal(age_law(same), age_law(same))
    table = law_table(BURSTS)  # stationary: 3/4 of the first regime, 1/4 of the second
    assert table.tolist() == pytest.approx([0.375, 0.375, 0, 0.0625, 0.1875], abs=0.01)


@pytest.mark.parametrize(
    ("text", "laws"),
    [
        ("wifi,wifi", (WiFi(), WiFi())),
        ("constant:2,2", (Constant(2), Constant(2))),
        ("uniform:0-3,0-1", (Uniform(0, 3), Uniform(0, 1))),
        (" wifi , constant:0", (WiFi(), Constant(0))),
        ("categorical:1@0.5/0.5,geometric:0.5/3", (Categorical((0.5, 0.5), 1), Geometric(0.5, 3))),
        ("categorical:0.5/0.5,constant:1", (Categorical((0.5, 0.5)), Constant(1))),
        ("trace:1/0/2,per-episode:wifi", (Trace((1, 0, 2)), PerEpisode(WiFi()))),
    ],
)
def test_pairs(text: str, laws: tuple[Delay, Delay]) -> None:
    assert parse_pair(text) == laws


@pytest.mark.parametrize("text", ["wifi", "wifi,wifi,wifi", ""])
def test_what_is_no_pair(text: str) -> None:
    with pytest.raises(ValueError, match="two laws with a comma"):
        parse_pair(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("unifrom:0-3", r"did you mean uniform\?"),
        ("WIFI", "did you mean wifi"),
        ("constant:2.5", "expected a whole number of ticks, got '2.5'; its form is 'constant:TICKS'"),
        ("constant:-1", "at least 0, got -1"),
        ("constant:", "got ''"),
        ("uniform:3-1", "at least 3, got 1"),
        ("uniform:-1-3", "at least 0, got -1"),
        ("uniform:3", "uniform:LOW-HIGH"),
        ("wifi:2", "after 'wifi'"),
        ("categorical:0@0.3/0.3", "sum to 1, .* sum to 0.6"),
        ("categorical:0@1.5/-0.5", r"lie in \[0, 1\]"),
        ("categorical:0@nan/1", r"lie in \[0, 1\]"),
        ("geometric:0/3", "must lie in"),
        ("geometric:0.5/x", "got 'x'"),
        ("per-episode:nothing", "there is no delay law 'nothing'"),
        ("per-episode:trace:1/2", "a law of its own"),
        ("markov:1;constant:1;constant:2", "2 x 2 transition table"),
        ("markov:0.5/0.6|1/0;constant:1;constant:2", "sum to 1"),
        ("markov:1;trace:1/2", "without memory"),
        ("trace:nowhere.csv", "'nowhere.csv' cannot be read"),
    ],
)
def test_bad_forms_are_answered(text: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1),
        lambda: Constant(1.0),  # type: ignore[arg-type]
        lambda: Constant(True),
        lambda: Uniform(0, 2.5),  # type: ignore[arg-type]
        lambda: Categorical((), 0),
        lambda: Categorical((1.0,), -1),
        lambda: Trace(()),
        lambda: Trace((1, 0.5)),  # type: ignore[arg-type]
        lambda: Trace((1, -1)),
        lambda: Geometric(1.5, 3),
        lambda: Markov((), ()),
    ],
)
def test_bad_numbers_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must|need|lie in"):
        make()


def test_numpy_numbers_are_numbers() -> None:
    assert Trace(np.array([1, 0, 2])) == Trace((1, 0, 2))
    assert Constant(np.int64(2)) == Constant(2)


def test_every_form_is_in_the_docstring() -> None:
    for kind in delays._FORMS:
        assert f"``{kind}" in (parse.__doc__ or ""), kind


def test_within_is_the_law_in_a_wider_space() -> None:
    wide = parse("within:6:uniform:0-2")
    assert (wide.min, wide.max, str(wide)) == (0, 6, "within:6:uniform:0-2")
    one, other = (law.sample((50, 20), torch.Generator().manual_seed(3)) for law in (wide, Uniform(0, 2)))
    assert (one == other).all()
    with pytest.raises(ValueError, match="delays of wifi are up to 4 ticks long, at most 3 fit"):
        parse("within:3:wifi")
