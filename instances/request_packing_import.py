"""Request packing from real files: the requests of a trace, packed offline; `request_packing_import_texts` has the literature's text formats.

Every request of an Azure or Mooncake trace becomes a request of the instance, in the file's order, by the rules and notices of `request_traces`: 0
prompt or output tokens count as 1. Where some are left out, `requests.record` has the numbers of the others in the file, 0 the first. Arrival times
only choose the requests (`from_s`, `until_s`). With objective "bins", Mooncake's `hash_ids` make prefix groups: the prefix tree flattened to one
level by the optimal rule of `request_packing_prefixes`, a group's overhead being its prefix and its requests' prompts what follows it. What was
chosen, left out or not trusted is in the notices, which the command line prints on stderr and `provenance` keeps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.presets import real, whole
from headroom.instances.request_packing import MOST_REQUESTS, MOST_TOKENS, PrefillLevel, RequestPacking, Requests
from headroom.instances.request_packing_import_texts import import_bpp, import_cmax, stem_of
from headroom.instances.request_packing_prefixes import PrefixTree, flatten, openable
from headroom.instances.request_traces import batches, sha256_of
from headroom.instances.trace_formats import AzureParser, Batch, MooncakeParser, TraceParser

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
BLOCK_TOKENS = 512
"""Tokens of a prefix block in the Mooncake traces."""
TOO_LARGE = ("keep", "drop", "error")
_ONLY_WITH = {"capacity_tokens": ("padding_multiple", "block_tokens", "no_prefixes"), "slots": ("decode_step_s", "prefill_level")}


@dataclass(frozen=True, kw_only=True)
class BacklogOptions:
    """What a trace does not say.

    `capacity_tokens` (objective "bins", with `padding_multiple`), or `slots` with `decode_step_s` and `prefill_level`, texts "tokens:seconds" with
    rising tokens, "-" for any number (objective "makespan"). `first`: only so many requests, the first in the file of those that arrive from `from_s`
    to before `until_s` seconds after the first arrival. `too_large`: requests larger than a bin or than the last prefill level are kept (no plan
    packs them), dropped, or an error. Mooncake only: `block_tokens` of a hash in `hash_ids`; `no_prefixes` leaves the hashes unread.
    """

    capacity_tokens: int | None = None
    padding_multiple: int = 1
    slots: int | None = None
    decode_step_s: float | None = None
    prefill_level: Sequence[str] = ()
    first: int | None = None
    from_s: float = 0.0
    until_s: float = math.inf
    too_large: str = "keep"
    block_tokens: int = BLOCK_TOKENS
    no_prefixes: bool = False

    def check(self) -> None:
        """Raise `InputError` naming the option."""
        if (self.capacity_tokens is None) == (self.slots is None):
            wanted = "--capacity-tokens (fewest bins) or --slots (least makespan)"
            raise InputError(f"one of {wanted} must be given" if self.slots is None else f"{wanted}: expected one of them, got both")
        other = "slots" if self.slots is None else "capacity_tokens"
        defaults = {field.name: field.default for field in fields(self)}
        for name in _ONLY_WITH[other]:
            value = getattr(self, name)
            if (tuple(value) if isinstance(value, list) else value) != defaults[name]:
                raise InputError(f"is for {_flag(other)}, which is not given", _flag(name))
        for name, most in (("capacity_tokens", MOST_TOKENS), ("padding_multiple", MOST_TOKENS), ("slots", 2**20), ("first", MOST_REQUESTS)):
            if getattr(self, name) is not None:
                whole(_flag(name), getattr(self, name), 1, most)
        whole("--block-tokens", self.block_tokens, 1, MOST_TOKENS)
        if self.slots is not None:
            if self.decode_step_s is None:
                raise InputError("is missing; expected the seconds of a decode step", "--decode-step-s")
            real("--decode-step-s", self.decode_step_s, 1e-12, 1e6)
        if not 0 <= self.from_s < math.inf:
            raise InputError(f"must be a number of seconds of at least 0, got {self.from_s}", "--from-s")
        if not self.from_s < self.until_s:
            raise InputError(f"must be above --from-s {self.from_s:g}, got {self.until_s}", "--until-s")
        if self.too_large not in TOO_LARGE:
            raise InputError(f"must be one of {', '.join(TOO_LARGE)}, got {shown(self.too_large)}", "--too-large")

    def levels(self) -> tuple[PrefillLevel, ...]:
        """The prefill levels; that they rise is the instance's rule."""
        return tuple(_level(text) for text in self.prefill_level)

    def given(self) -> dict[str, Any]:
        """The options that were given, for the provenance."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: list(value) if isinstance(value, (list, tuple)) else value for name, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class _HashedBatch(Batch):
    """A batch with the hashes of each prompt's blocks."""

    blocks: list[list[int]]


class _HashParser(MooncakeParser):
    """Mooncake's JSON lines with `hash_ids`; a request without that field has no hashes."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens

    def parse(self, block: bytes, first_line: int) -> Batch | None:
        """See `TraceParser`."""
        batch = super().parse(block, first_line)
        if batch is None:
            return None
        lines = ((number, line) for number, line in enumerate(block.split(b"\n"), start=first_line) if line.strip())
        blocks = [self._blocks(line, number, tokens) for (number, line), tokens in zip(lines, batch.prompt_tokens.tolist(), strict=True)]
        return _HashedBatch(batch.ticks, batch.prompt_tokens, batch.output_tokens, blocks)

    def _blocks(self, line: bytes, number: int, tokens: int) -> list[int]:
        try:
            found = json.loads(line.decode("utf-8-sig")).get("hash_ids", [])
        except (ValueError, RecursionError):
            raise InputError(f"line {number} is not a JSON object: {shown(line.decode('utf-8', 'replace').strip())}") from None
        if not isinstance(found, list):
            raise InputError(f"line {number}: hash_ids must be a list of whole numbers, got {shown(found)}")
        if not set(map(type, found)) <= {int}:
            k = next(k for k, value in enumerate(found) if type(value) is not int)
            raise InputError(f"line {number}: hash_ids[{k}] must be a whole number, got {shown(found[k])}")
        # The last block is hashed by some systems only when it is full.
        full, all_blocks = tokens // self._block_tokens, -(-tokens // self._block_tokens)
        if found and not full <= len(found) <= all_blocks:
            wanted = str(all_blocks) if full == all_blocks else f"{full} or {all_blocks}"
            what = f"{wanted} blocks of {self._block_tokens} tokens (--block-tokens) for input_length {tokens}"
            raise InputError(f"line {number}: hash_ids must have {what}, got {len(found)}")
        return found


def import_azure_llm_requests(path: Path | str, **options: Any) -> tuple[RequestPacking, list[str]]:
    """Pack the requests of an Azure LLM inference trace (CSV); options: `BacklogOptions` without those of Mooncake, errors as `read_trace`.

    One pass (two with a window of time), memory linear in the requests taken.
    """
    return _import(Path(path), AzureParser.name, BacklogOptions(**options))


def import_mooncake_requests(path: Path | str, **options: Any) -> tuple[RequestPacking, list[str]]:
    """Pack the requests of a Mooncake trace (JSON lines), prefixes shared by `hash_ids`; options: `BacklogOptions`, errors as `read_trace`.

    One pass (two with a window of time), memory linear in the requests taken and their hashes.
    """
    return _import(Path(path), MooncakeParser.name, BacklogOptions(**options))


def _import(path: Path, trace_format: str, asked: BacklogOptions) -> tuple[RequestPacking, list[str]]:
    asked.check()
    levels = asked.levels()
    # A prefix is kept once in a bin; slots prefill every prompt in full.
    hashed = trace_format == MooncakeParser.name and asked.capacity_tokens is not None and not asked.no_prefixes
    notices: list[str] = []
    made: dict[str, Any] = {"importer": f"{trace_format}-requests", "options": asked.given()}
    group: IntArray | None = None
    overhead: IntArray | int = 0
    try:
        prompt, output, record, hashes = _read(path, trace_format, asked, hashed, notices)
        keep = _keep(path, prompt, output, asked, levels, notices)
        if not keep.all():
            prompt, output, record = prompt[keep], output[keep], record[keep]
            hashes = [found for found, kept in zip(hashes, keep.tolist(), strict=False) if kept]
        if hashed:
            prompt, group, overhead, made["prefixes"] = _group(path, prompt, output, hashes, asked, notices)
        made["sources"] = [{"role": "trace", "format": trace_format, "file": path.name, "sha256": sha256_of(path)}]
    except InputError as error:
        raise error.within(str(path)) from None
    if trace_format == MooncakeParser.name and not hashed:
        notices.append(f"{path.name}: shared prefixes are not used, every prompt counts in full")
    instance = RequestPacking(
        name=stem_of(path), provenance=made | {"notices": notices},
        requests=Requests(prompt_tokens=prompt, output_tokens=output, group=group, record=_unlike_order(record)),
        objective="bins" if asked.slots is None else "makespan", capacity_tokens=asked.capacity_tokens, group_overhead_tokens=overhead,
        padding_multiple=asked.padding_multiple, slots=asked.slots, prefill_levels=levels,
        decode_step_s=None if asked.decode_step_s is None else float(asked.decode_step_s),
    )  # fmt: skip
    return instance, notices


def _parser(trace_format: str, asked: BacklogOptions, hashed: bool) -> TraceParser:
    if trace_format == AzureParser.name:
        return AzureParser()
    return _HashParser(asked.block_tokens) if hashed else MooncakeParser()


def _read(
    path: Path, trace_format: str, asked: BacklogOptions, hashed: bool, notices: list[str]
) -> tuple[IntArray, IntArray, IntArray, list[list[int]]]:
    """Prompt and output tokens [request] of the requests asked for, 0 counted as 1, their numbers in the file, and hashes (none unless `hashed`)."""
    parser = _parser(trace_format, asked, hashed)
    least, below = -math.inf, math.inf
    windowed = asked.from_s > 0 or asked.until_s < math.inf
    if windowed:  # the rows need not be in order, so the first arrival is known at the end only
        spans = [(batch.ticks.min().item(), batch.ticks.max().item()) for batch in batches(path, _parser(trace_format, asked, False))]
        if not spans:
            raise parser.nothing_found()
        start, last_s = min(span[0] for span in spans), (max(span[1] for span in spans) - min(span[0] for span in spans)) / parser.ticks_per_s
        least, below = start + asked.from_s * parser.ticks_per_s, start + asked.until_s * parser.ticks_per_s
    prompts: list[IntArray] = []
    outputs: list[IntArray] = []
    hashes: list[list[int]] = []
    records: list[IntArray] = []
    count, seen, most = 0, 0, asked.first or MOST_REQUESTS + 1
    for batch in batches(path, parser):
        taken = np.flatnonzero((batch.ticks >= least) & (batch.ticks < below))[: most - count]
        prompts.append(batch.prompt_tokens[taken])
        outputs.append(batch.output_tokens[taken])
        records.append(seen + taken)
        seen += len(batch.ticks)
        if isinstance(batch, _HashedBatch):
            hashes += [batch.blocks[k] for k in taken.tolist()]
        count += len(taken)
        if count >= most:
            break
    if count > MOST_REQUESTS:
        raise InputError(f"has more than {MOST_REQUESTS} requests; expected at most that many, or --first or --until-s to take fewer")
    if not prompts:
        raise parser.nothing_found()
    if not count:
        window = f"from {asked.from_s:g} s" + (f" to before {asked.until_s:g} s" if asked.until_s < math.inf else " on")
        raise InputError(f"no request arrives {window}; the last one arrives at {last_s:g} s")
    sizes = []
    for name, kind, parts in zip(parser.fields[1:], ("prompt", "output"), (prompts, outputs), strict=True):
        tokens = np.concatenate(parts).astype(np.int64)
        if zeros := int((tokens == 0).sum()):
            notices.append(f"{path.name}: {zeros} of {count} requests have 0 {kind} tokens ({name}); counted as 1")
        sizes.append(np.maximum(tokens, 1))
    return sizes[0], sizes[1], np.concatenate(records).astype(np.int64), hashes


def _keep(
    path: Path, prompt: IntArray, output: IntArray, asked: BacklogOptions, levels: Sequence[PrefillLevel], notices: list[str]
) -> BoolArray:
    """Which requests [request] stay, by `too_large`."""
    tokens, most, where = prompt, levels[-1].max_tokens if levels else None, "the last prefill level"
    if asked.capacity_tokens is not None:
        multiple = asked.padding_multiple
        tokens, most, where = -(-(prompt + output) // multiple) * multiple, asked.capacity_tokens, "a bin"
    fits: BoolArray = np.full(len(prompt), True) if most is None else tokens <= most
    beyond = int((~fits).sum())
    if beyond:
        what = f"{beyond} of {len(fits)} requests are larger than {where} of {most} tokens"
        if asked.too_large == "error":
            raise InputError(f"{what}, the largest has {tokens.max()}; expected none (--too-large error)")
        if asked.too_large == "keep":
            notices.append(f"{path.name}: {what}, the largest has {tokens.max()}: no plan packs them (--too-large drop leaves them out)")
            return np.full(len(fits), True)
        notices.append(f"LEFT OUT: {what}, the largest has {tokens.max()}")
        if beyond == len(fits):
            raise InputError(f"{what}; expected some that fit")
    return fits


def _group(
    path: Path, prompt: IntArray, output: IntArray, hashes: list[list[int]], asked: BacklogOptions, notices: list[str]
) -> tuple[IntArray, IntArray | None, IntArray | int, dict[str, int]]:
    """Prompts without their group's prefix [request], groups [request] and overheads [group] (None and 0 without groups), and the figures."""
    tree = PrefixTree()
    for blocks, tokens in zip(hashes, prompt.tolist(), strict=True):
        tree.add(blocks, tokens, asked.block_tokens)
    unknown = sum(not blocks for blocks, tokens in zip(hashes, prompt.tolist(), strict=True) if tokens >= asked.block_tokens)
    if unknown:
        notices.append(f"{path.name}: {unknown} of {len(prompt)} requests have no hash_ids: their prompts share nothing")
    flat = flatten(tree, openable(tree, prompt + output, asked.capacity_tokens or MOST_TOKENS, asked.padding_multiple))
    inside = flat.group >= 0
    figures = {
        "block_tokens": asked.block_tokens, "blocks": tree.nodes, "groups": len(flat.overhead_tokens), "grouped_requests": int(inside.sum()),
        "prompt_tokens": int(prompt.sum()), "saved_tokens": flat.saved_tokens, "tree_saved_tokens": flat.tree_saved_tokens,
    }  # fmt: skip
    notices.append(
        f"{path.name}: prefix tree of {figures['blocks']} blocks flattened to {figures['groups']} groups of {figures['grouped_requests']} requests, "
        f"which save {flat.saved_tokens} of {figures['prompt_tokens']} prompt tokens where each group is in one bin; no sharing of prefixes saves "
        f"more than {flat.tree_saved_tokens}"
    )
    if not inside.any():
        return prompt, None, 0, figures
    rest = prompt.copy()
    rest[inside] -= flat.overhead_tokens[flat.group[inside]]
    return rest, flat.group, flat.overhead_tokens, figures


def _unlike_order(record: IntArray) -> IntArray | None:
    """Numbers in the file [request]; None where they are the instance's own."""
    return None if (record == np.arange(len(record))).all() else record


def _level(text: str) -> PrefillLevel:
    """One --prefill-level."""
    tokens, _, seconds = text.partition(":")
    try:
        return PrefillLevel(max_tokens=None if tokens.strip() == "-" else int(tokens), time_s=float(seconds))
    except ValueError:  # of int(), float() and the fields' limits alike
        raise InputError(f"must be TOKENS:SECONDS (TOKENS - for any number), got {shown(text)}", "--prefill-level") from None


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


__all__ = ["BacklogOptions", "import_azure_llm_requests", "import_bpp", "import_cmax", "import_mooncake_requests"]
