"""Request packing: what an instance is and what it refuses, files and digests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headroom.instances.base import load_document
from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking
from tests.request_packing_cases import bins, staged, tiny

LEVELS: list[tuple[int | None, float]] = [(10, 1.0), (30, 2.0)]


def error_of(**fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        RequestPacking(**fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Instances that are none.

TWO_BINS, TWO_SLOTS = bins([3, 4], 10), staged([3, 4], [1, 2], 2, LEVELS)


def with_requests(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return data | {"requests": data["requests"] | changes}


RULES: list[tuple[dict[str, Any], str]] = [
    (with_requests(TWO_BINS, prompt_tokens=[], output_tokens=[]), "requests.prompt_tokens must have 1 to 4194304 entries, got 0"),
    (with_requests(TWO_BINS, output_tokens=[1]), "requests.output_tokens must have 2 entries, one for each in requests.prompt_tokens, got 1"),
    (with_requests(TWO_BINS, group=[0]), "requests.group must have 2 entries, one for each in requests.prompt_tokens, got 1"),
    (with_requests(TWO_BINS, prompt_tokens=[3, -4]), "requests.prompt_tokens[1] must be a whole number from 0 to 274877906944, got -4"),
    (with_requests(TWO_BINS, prompt_tokens=[3, 2**38 + 1]), "requests.prompt_tokens[1] must be a whole number from 0 to 274877906944, got 2748779"),
    (with_requests(TWO_BINS, prompt_tokens=[3, 0.5]), "requests.prompt_tokens[1] must be a whole number, got 0.5"),
    (with_requests(TWO_BINS, prompt_tokens=[3, True]), "requests.prompt_tokens[1] must be a whole number, got True"),
    (with_requests(TWO_BINS, prompt_tokens=[3, "4"]), "requests.prompt_tokens[1] must be a whole number, got '4'"),
    (with_requests(TWO_BINS, prompt_tokens=[3, None]), "requests.prompt_tokens[1] must be a whole number, got None"),
    (with_requests(TWO_BINS, prompt_tokens=[3, 0]), "requests[1] must have at least one token in all because the objective is 'bins', got none"),
    (with_requests(TWO_BINS, group=[-2, 0]), "requests.group[0] must be a whole number from -1 to"),
    (with_requests(TWO_BINS, arrival_s=[0, 1]), "requests.arrival_s is an unknown field"),
    (TWO_BINS | {"requests": {"prompt_tokens": [1]}}, "requests.output_tokens is missing"),
    (TWO_BINS | {"group_overhead_tokens": [1]}, "group_overhead_tokens must be one number because no request has a group, got a list"),
    (
        with_requests(TWO_BINS, group=[0, 1]) | {"group_overhead_tokens": [1]},
        "group_overhead_tokens must have 2 entries, one for each group, got 1",
    ),
    (with_requests(TWO_BINS, group=[0, 1]) | {"group_overhead_tokens": -1}, "group_overhead_tokens must be a whole number from 0 to"),
    (TWO_BINS | {"objective": "time"}, "objective must be 'bins' or 'makespan', got 'time'"),
    (TWO_BINS | {"capacity_tokens": None}, "capacity_tokens must be given because the objective is 'bins', got null"),
    (TWO_BINS | {"capacity_tokens": 0}, "capacity_tokens must be greater than or equal to 1, got 0"),
    (TWO_BINS | {"capacity_tokens": 1.5}, "capacity_tokens must be"),
    (TWO_BINS | {"padding_multiple": 0}, "padding_multiple must be greater than or equal to 1, got 0"),
    (TWO_BINS | {"slots": 2}, "slots must be null because the objective is 'bins', got 2"),
    (TWO_BINS | {"decode_step_s": 1.0}, "decode_step_s must be null because the objective is 'bins', got 1.0"),
    (TWO_BINS | {"prefill_levels": [{"max_tokens": 1, "time_s": 1.0}]}, "prefill_levels must be empty because the objective is 'bins', got some"),
    (TWO_SLOTS | {"slots": None}, "slots must be given because the objective is 'makespan', got null"),
    (TWO_SLOTS | {"slots": 0}, "slots must be greater than or equal to 1, got 0"),
    (TWO_SLOTS | {"decode_step_s": None}, "decode_step_s must be given because the objective is 'makespan', got null"),
    (TWO_SLOTS | {"decode_step_s": 0.0}, "decode_step_s must be greater than 0, got 0.0"),
    (TWO_SLOTS | {"decode_step_s": math.nan}, "decode_step_s must be"),
    (TWO_SLOTS | {"capacity_tokens": 9}, "capacity_tokens must be null because the objective is 'makespan', got 9"),
    (TWO_SLOTS | {"padding_multiple": 2}, "padding_multiple must be 1 because the objective is 'makespan', got 2"),
    (TWO_SLOTS | {"group_overhead_tokens": 2}, "group_overhead_tokens must be 0 because the objective is 'makespan', got another value"),
    (with_requests(TWO_SLOTS, group=[0, 0]), "requests.group must be null because the objective is 'makespan', got a list"),
    (with_requests(TWO_SLOTS, output_tokens=[1, 0]), "requests.output_tokens[1] must be at least 1 because the objective is 'makespan', got 0"),
    (TWO_SLOTS | staged([3], [1], 1, [(4, 1.0), (4, 2.0)]), "prefill_levels[1].max_tokens must be above 4, the level before, got 4"),
    (TWO_SLOTS | staged([3], [1], 1, [(4, 1.0), (5, 1.0)]), "prefill_levels[1].time_s must be above 1, the level before, got 1"),
    (
        TWO_SLOTS | staged([3], [1], 1, [(None, 1.0), (5, 2.0)]),
        "prefill_levels[0].max_tokens must be a number because only the last level may take any, got null",
    ),
    (TWO_SLOTS | staged([3], [1], 1, [(0, 1.0)]), "prefill_levels[0].max_tokens must be greater than or equal to 1, got 0"),
    (TWO_SLOTS | staged([3], [1], 1, [(4, -1.0)]), "prefill_levels[0].time_s must be greater than or equal to 0, got -1.0"),
    (TWO_SLOTS | {"prefill_levels": [{"time_s": 1.0}]}, "prefill_levels[0].max_tokens is missing"),
    (TWO_SLOTS | {"speed": 1}, "speed is an unknown field, got 1"),
]


@pytest.mark.parametrize(("data", "message"), RULES, ids=[f"{n}: {message[:40]}" for n, (_, message) in enumerate(RULES)])
def test_each_rule_is_one_line_that_names_the_field(data: dict[str, Any], message: str) -> None:
    assert error_of(**data).startswith(message)


def test_arrays_are_read_only_copies() -> None:
    mine = np.array([3, 4])
    instance = RequestPacking(**with_requests(TWO_BINS, prompt_tokens=mine))
    mine[0] = 9
    assert instance.requests.prompt_tokens.tolist() == [3, 4]
    for array in (instance.requests.prompt_tokens, instance.size, instance.padded, instance.group_of, instance.overhead):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# Files.


def test_files_keep_every_instance(tmp_path: Path) -> None:
    for number, data in enumerate(map(tiny, range(40))):
        instance = RequestPacking(name=f"n°{number} ключ", provenance={"seed": number}, **data)
        for suffix in (".json", ".npz"):
            path = tmp_path / f"{number}{suffix}"
            instance.save(path)
            again = RequestPacking.from_document(load_document(path))
            assert again.digest() == instance.digest(), (number, suffix)
            assert (again.name, again.provenance) == (instance.name, instance.provenance)
            assert again.data() == instance.data()
            assert isinstance(again.group_overhead_tokens, np.ndarray) == isinstance(instance.group_overhead_tokens, np.ndarray)


def test_data_leave_out_what_is_at_its_default() -> None:
    full = with_requests(TWO_BINS, group=[0, -1]) | {"group_overhead_tokens": [2], "padding_multiple": 3}
    for data in (TWO_BINS, TWO_SLOTS, full):
        assert json.loads(json.dumps(RequestPacking(**data).data())) == data


def test_any_change_changes_the_digest() -> None:
    grouped = with_requests(TWO_BINS, group=[0, 1])
    data: list[dict[str, Any]] = [
        TWO_BINS, TWO_SLOTS, grouped, with_requests(TWO_BINS, group=[0, 0]), with_requests(TWO_BINS, prompt_tokens=[4, 3]),
        with_requests(TWO_BINS, output_tokens=[0, 1]), TWO_BINS | {"capacity_tokens": 11}, TWO_BINS | {"padding_multiple": 2},
        grouped | {"group_overhead_tokens": 1}, grouped | {"group_overhead_tokens": [1, 1]}, TWO_SLOTS | {"slots": 3},
        TWO_SLOTS | {"decode_step_s": 2.0}, staged([3, 4], [1, 2], 2, []), staged([3, 4], [1, 2], 2, [(10, 1.0), (None, 2.0)]),
    ]  # fmt: skip
    assert len({RequestPacking(**fields).digest() for fields in data}) == len(data)
    assert RequestPacking(name="other", **TWO_BINS) == RequestPacking(**TWO_BINS)
