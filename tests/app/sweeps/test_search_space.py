"""Hydra's ranges, and the distributions that its official plugin documents for them."""

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mrcnn_lightning.app.sweeps.search_space import as_override, grid, read_space


@pytest.mark.parametrize(
    ("written", "distribution"),
    [
        ("interval(1e-4, 0.1)", FloatDistribution(1e-4, 0.1)),
        ("tag(log, interval(1e-4, 0.1))", FloatDistribution(1e-4, 0.1, log=True)),
        ("interval(2, 8)", FloatDistribution(2.0, 8.0)),
        ("int(interval(1, 3))", IntDistribution(1, 3)),
        ("int(tag(log, interval(1, 512)))", IntDistribution(1, 512, log=True)),
        ("range(0, 10, 3)", IntDistribution(0, 9, step=3)),
        ("range(0.0, 1.0, 0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(32, 0.5, sgd, true)", CategoricalDistribution([32, 0.5, "sgd", True])),
        ("choice([[8],[16]], [[32]])", CategoricalDistribution(["[[8],[16]]", "[[32]]"])),
        ("1,2", CategoricalDistribution([1, 2])),
        ("shuffle(range(0, 3))", CategoricalDistribution([0, 1, 2])),
    ],
)
def test_ranges(written: str, distribution: BaseDistribution) -> None:
    found = read_space({"key": written}, []).ranges["key"]
    if written.startswith("shuffle"):
        assert isinstance(found, CategoricalDistribution) and sorted(found.choices) == [0, 1, 2]
    else:
        assert found == distribution


def test_the_command_line_has_the_last_word() -> None:
    params = {"a": "interval(0, 1)", "b": 3, "c": None, "+d@x": "choice(1, 2)"}
    space = read_space(params, ["a=0.5", "b=interval(0.0, 1.0)", "~e"])
    assert space.fixed == {"a": "a=0.5", "c": "c=null", "~e": "~e"}
    assert list(space.ranges) == ["+d@x", "b"]


def test_values_as_hydra_reads_them() -> None:
    assert as_override("a", True) == "a=true" and as_override("a", None) == "a=null"
    assert as_override("a", 1.5e-05) == "a=1.5e-05" and as_override("a", "[1,2]") == "a=[1,2]"


def test_a_grid() -> None:
    space = read_space({"a": "range(1, 4)", "b": "range(0.0, 0.3, 0.1)", "c": "x,y"}, [])
    values = grid(space.ranges)
    assert values["a"] == [1, 2, 3] and values["c"] == ["x", "y"]
    assert values["b"] == pytest.approx([0.0, 0.1, 0.2])
    with pytest.raises(ValueError, match=r"a: a grid has no intervals"):
        grid(read_space({"a": "interval(0, 1)"}, []).ranges)


def test_a_range_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"a=tag\(log,interval\(0.0,1.0\)\) cannot be searched"):
        read_space({}, ["a=tag(log,interval(0.0,1.0))"])
