"""What a search varies: Hydra's ranges as Optuna's distributions, and values as overrides."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mrcnn_lightning.user_error import UserError


class SearchSpace(NamedTuple):
    """What a search varies, and what it leaves as it is.

    Attributes:
        ranges: of each key that varies, `+` and `@` included.
        fixed: the overrides of all other keys.
    """

    ranges: dict[str, BaseDistribution]
    fixed: dict[str, str]


def read_space(
    params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader | None = None
) -> SearchSpace:
    """The search space of a configuration and a command line, which has the last word.

    Args:
        params: `hydra.sweeper.params`.
        arguments: overrides.
        loader: knows the options of groups, for `glob(...)`.

    Raises:
        UserError: a range that cannot be searched.
    """
    lines = [f"{key}={'null' if value is None else value}" for key, value in params.items()]
    space = SearchSpace({}, {})
    for each in OverridesParser.create(loader).parse_overrides([*lines, *arguments]):
        key = each.get_key_element()
        space.ranges.pop(key, None)
        space.fixed.pop(key, None)
        if each.is_sweep_override():
            try:
                space.ranges[key] = _distribution(each)
            except ValueError as error:
                raise UserError(f"{each.input_line} cannot be searched: {error}") from error
        else:
            assert each.input_line is not None
            space.fixed[key] = each.input_line
    return space


def as_override(key: str, value: Any) -> str:
    """What the command line of a trial says; texts are as Hydra reads them already."""
    if isinstance(value, bool) or value is None:
        value = {True: "true", False: "false", None: "null"}[value]
    return f"{key}={value}"


def first_value(distribution: BaseDistribution) -> Any:
    """One that the distribution has."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low


def grid(ranges: Mapping[str, BaseDistribution]) -> dict[str, list[Any]]:
    """All values of each key.

    Raises:
        UserError: a range has no end of them.
    """
    return {key: _values(key, distribution) for key, distribution in ranges.items()}


def num_combinations(values: Mapping[str, Sequence[Any]]) -> int:
    """How many trials a whole grid has."""
    return math.prod(len(each) for each in values.values())


def _values(key: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        num_steps = round((distribution.high - distribution.low) / distribution.step)
        return [distribution.low + i * distribution.step for i in range(num_steps + 1)]
    raise UserError(f"{key}: a grid has no intervals, give choice(...) or range(...)")


def _distribution(override: Override) -> BaseDistribution:
    sweep: Any = override.value()
    if override.is_interval_sweep():
        assert isinstance(sweep, IntervalSweep)
        return _interval(sweep.start, sweep.end, is_log="log" in sweep.tags)
    is_range = isinstance(sweep, RangeSweep) and not sweep.shuffle and sweep.step > 0
    values = [_encoded(value) for value in override.sweep_iterator()]
    if not values:
        raise ValueError("it has no values")
    if not is_range:
        return CategoricalDistribution(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(values[0], values[-1], step=sweep.step)
    return FloatDistribution(values[0], values[-1], step=sweep.step)


def _interval(start: Any, end: Any, *, is_log: bool) -> BaseDistribution:
    if isinstance(start, int) and isinstance(end, int):
        return IntDistribution(start, end, log=is_log)
    return FloatDistribution(start, end, log=is_log)


def _encoded(value: Any) -> Any:
    """Numbers and switches as they are, the rest as an override's text."""
    return value if isinstance(value, int | float) else Transformer.str(value)
