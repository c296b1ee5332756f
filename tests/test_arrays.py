"""Array fields: what they admit, what they leave in the field, how they are written and described."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from headroom.instances.arrays import NumberOrNumbers, Numbers, NumbersOrNulls
from headroom.instances.base import Record, first_message
from headroom.instances.errors import InputError, span
from headroom.instances.presets import real


class Holder(Record):
    table: Annotated[npt.NDArray[np.float64], Numbers("table", "[row][column]", least=None, most=10.0)] | None = None
    narrow: Annotated[npt.NDArray[np.int32], Numbers("narrow", "[k]", whole=True, narrow=True, most=2**31 - 1)] | None = None
    size: Annotated[float | npt.NDArray[np.float64], NumberOrNumbers("size", "row", least=1.0)] = 1.0
    count: Annotated[int | npt.NDArray[np.int64], NumberOrNumbers("count", "row", whole=True, most=9)] = 0
    rates: Annotated[npt.NDArray[np.float64], NumbersOrNulls("rates")] | None = None


def made(**fields: Any) -> Holder:
    return Holder.model_validate(fields)


def test_arrays_are_copies_that_nobody_can_change() -> None:
    given = np.array([[1, 2], [3, 4]], np.int8)
    table = made(table=given).table
    given[0, 0] = 9
    assert table is not None
    assert table.dtype == np.float64
    assert table.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 5.0


def test_what_stands_in_the_field_is_what_its_type_says() -> None:
    holder = made(narrow=[0, 2**31 - 1], size=[1, 2.5], count=3, rates=[[1, None]])
    assert holder.narrow is not None
    assert holder.narrow.dtype == np.int32
    assert isinstance(holder.size, np.ndarray)
    assert holder.size.dtype == np.float64
    assert type(made(count=np.array(3)).count) is int
    assert type(made(size=2).size) is float
    assert isinstance(made(count=[3, 4]).count, np.ndarray)
    assert holder.rates is not None
    assert np.isnan(holder.rates[0, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"table": [[1, 2], [3]]}, "table[1] has 1 entries, expected 2 as in table[0]"),
        ({"table": [[1, -11]]}, "table[0][1] must be a finite number, got -11"),
        ({"table": np.array([[np.nan]])}, "table[0][0] must be a finite number, got nan"),
        ({"table": [[True]]}, "table[0][0] must be a number, got True"),
        ({"table": np.zeros(2)}, "table must be an array [row][column] of numbers, got 1 dimensions of float64"),
        ({"narrow": [2**31]}, "narrow[0] must be a whole number from 0 to 2147483647, got 2147483648"),
        ({"narrow": [1.0]}, "narrow[0] must be a whole number, got 1.0"),
        ({"size": "2"}, "size must be a number, or a list of them with one for each row, got '2'"),
        ({"size": 0.5}, "size must be a number from 1 to 1e+300, got 0.5"),
        ({"size": [2.0, 0.5]}, "size[1] must be a number from 1 to 1e+300, got 0.5"),
        ({"count": 1.0}, "count must be a whole number, or a list of them with one for each row, got 1.0"),
        ({"count": None}, "count must be a whole number, or a list of them with one for each row, got None"),
        ({"rates": [[1.0], [0.0]]}, "rates[1][0] must be positive (null where impossible), got 0"),
    ],
)
def test_errors_name_the_element(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        made(**fields)
    assert first_message(caught.value) == message


def test_written_as_lists_or_left_as_arrays() -> None:
    holder = made(table=[[1, 2]], size=[1, 2], count=4, rates=[[1, None]])
    written = {"table": [[1.0, 2.0]], "narrow": None, "size": [1.0, 2.0], "count": 4, "rates": [[1.0, None]]}
    assert holder.model_dump() == written
    left = holder.model_dump(context={"arrays": True})
    assert left["table"] is holder.table
    assert left["size"] is holder.size
    assert left["count"] == 4


def test_schema() -> None:
    fields = Holder.model_json_schema()["properties"]
    assert fields["table"]["anyOf"][0] == {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    whole = {"type": "integer", "minimum": 0.0}
    assert fields["count"]["anyOf"] == [whole, {"type": "array", "items": whole}]
    assert fields["narrow"]["anyOf"] == [{"type": "array", "items": whole}, {"type": "null"}]


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (0, 2**38, "from 0 to 274877906944"),
        (-1, 2**22, "from -1 to 4194304"),
        (0.0, 4194303.0, "from 0 to 4194303"),  # six figures would be another number
        (1e-12, 1e6, "from 1e-12 to 1e+06"),
        (0.95, 1.23456789, "from 0.95 to 1.23456789"),
        (0.5, math.inf, "of at least 0.5"),
        (-math.inf, 3, "of at most 3"),
        (-math.inf, math.inf, "of any size"),
    ],
)
def test_limits_are_said_exactly(least: float, most: float, said: str) -> None:
    assert span(least, most) == said
    with pytest.raises(InputError, match=re.escape(f"x must be a number {said}, got nan")):
        real("x", math.nan, least, most)
