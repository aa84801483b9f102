import pytest
import torch
from headway.agents.core.nets import check_precision


def test_float32_is_never_refused() -> None:
    for device in ("cpu", "cuda", "meta"):
        check_precision("float32", torch.device(device))


def test_bfloat16_is_refused_where_nothing_says_that_it_gains() -> None:
    with pytest.raises(ValueError, match=r"precision='bfloat16'.*use precision='float32'"):
        check_precision("bfloat16", torch.device("meta"))


def test_the_processors_answer_stays() -> None:
    """It is measured once; a second look on a busier machine must not change it."""
    answers = []
    for _ in range(2):
        try:
            check_precision("bfloat16", torch.device("cpu"))
            answers.append("")
        except ValueError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
