"""Hyperparameters to try: all combinations of values, or random draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxdl.arguments import explain_calls, number, whole_number
from jaxdl.errors import InputError

Candidate = dict[str, Any]
Draw = Callable[[np.random.Generator], Any]


@explain_calls
def grid(**values: Iterable[Any]) -> list[Candidate]:
    """Every combination of the values, the last name changing fastest.

    A string is one value. Raises InputError for a name without values, or with what is no row of them.

    >>> grid(hidden=((10, 5), (3, 3)), learning_rate=(0.01, 0.001))[1]
    {'hidden': (10, 5), 'learning_rate': 0.001}
    """
    for name, of in values.items():
        if not isinstance(of, Iterable):
            raise InputError(f"{name} must be a row of values to try, got {of!r}. Use ({of!r},), say.")
    lists = {name: [of] if isinstance(of, str) else list(of) for name, of in values.items()}
    for name, listed in lists.items():
        if not listed:
            raise InputError(f"{name} must have at least one value to try, got none.")
    return [dict(zip(lists, combination, strict=True)) for combination in itertools.product(*lists.values())]


def random(count: int, seed: int = 0, **draws: Draw) -> list[Candidate]:
    """`count` candidates, each value drawn on its own: as good as a grid with far fewer runs where few values matter.

    Source: Bergstra and Bengio, Journal of Machine Learning Research 13 (2012). Raises InputError for a count below 1,
    and for a draw that is none.

    >>> random(2, dropout=uniform(0.0, 0.5), hidden=choice((10, 5), (3, 3)))[1]
    {'dropout': 0.020..., 'hidden': (10, 5)}
    """
    count = whole_number("count", count, 1)
    for name, draw in draws.items():
        if not callable(draw):
            raise InputError(f"{name} must be a draw, such as uniform(0.0, 0.5), got {draw!r}.")
    generator = np.random.default_rng(seed)
    return [{name: draw(generator) for name, draw in draws.items()} for _ in range(count)]


def uniform(low: float, high: float) -> Draw:
    """A float from `low` to `high`, all equally likely. Raises InputError for bounds that are not finite or in order.

    >>> 1 <= uniform(1.0, 2.0)(np.random.default_rng(0)) <= 2
    True
    """
    if not -math.inf < number("low", low) <= number("high", high) < math.inf:
        raise InputError(f"uniform needs low <= high, both finite, got {low} and {high}.")
    return lambda generator: float(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """A float from `low` to `high` whose logarithm is uniform, as fits a learning rate.

    Raises InputError unless 0 < low <= high, both finite.

    >>> 1e-4 <= log_uniform(1e-4, 1e-1)(np.random.default_rng(0)) <= 1e-1
    True
    """
    if not 0 < number("low", low) <= number("high", high) < math.inf:
        raise InputError(f"log_uniform needs 0 < low <= high, both finite, got {low} and {high}.")
    # Rounding may pass an end.
    return lambda generator: float(min(max(low, math.exp(generator.uniform(math.log(low), math.log(high)))), high))


def choice(*values: Any) -> Draw:
    """One of the values, all equally likely. Raises InputError where there are none.

    >>> choice("relu")(np.random.default_rng(0))
    'relu'
    """
    if not values:
        raise InputError("choice needs at least one value, got none.")
    return lambda generator: values[generator.integers(len(values))]
