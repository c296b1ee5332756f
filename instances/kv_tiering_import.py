"""KV-tiering instances from recorded attention: which tokens (or blocks) each decode step and layer read, or the scores they were chosen by.

The importer returns the instance and notices: one-line strings about what was chosen or left out, which the command line prints on stderr and
`provenance` keeps. What the file cannot say (tiers, bytes, which tokens are the prompt's) are options, see `AccessOptions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.expert_placement_import_tables import read_head, read_npz_members
from headroom.instances.kv_tiering import KvTiering, Reads, Tier
from headroom.instances.kv_tiering_generators import read_counts
from headroom.instances.kv_tiering_presets import MEMORIES
from headroom.instances.presets import real, whole
from headroom.instances.request_traces import sha256_of

IntArray = npt.NDArray[np.int64]
Indices = npt.NDArray[Any]
MOST_TOKENS = 10**8
USABLE_SHARE = 0.9
"""Share of a GPU's memory for weights and KV cache, as serving systems set it by default."""
HARDWARE = {"gh200": (("gh200-hbm", 144.0), ("gh200-lpddr", None)), "h100-pcie": (("h100-hbm", 80.0), ("pcie5-dram", None))}
"""Memories of `MEMORIES` with GB, for --hardware. NVIDIA's data sheets: GH200 with HBM3e, H100 SXM."""


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """What no file says.

    Tiers are either `tier`, "name:capacity_gb:read_gb_per_s:write_gb_per_s" from the fastest on, the last with capacity "-" (1 GB = 10⁹ bytes), or
    `hardware`, "gh200" or "h100-pcie", with `kv_capacity_gb` of the fast one for the KV cache (default: nine tenths of the memory, less the weights
    of all layers). `kv_entry_bytes`: KV bytes of one token (of whatever is numbered) and layer. `page_tokens` tokens are one block (default 1).
    `prompt_tokens` exist at the start and token p beyond them is born in decode step p − prompt_tokens; None: all tokens exist from the start on.
    `top_k` or `sparsity` say how many tokens are read where the file has scores. `fixed_read_bytes`: weights that one layer of a step reads.
    `partial_reads`: of a page only the tokens named are read. `inclusive`: the last tier keeps a copy of everything.
    """

    tier: Sequence[str] | None = None
    hardware: Sequence[str] | str | None = None
    kv_capacity_gb: float | None = None
    kv_entry_bytes: float | None = None
    page_tokens: int = 1
    prompt_tokens: int | None = None
    top_k: int | None = None
    sparsity: float | None = None
    fixed_read_bytes: float = 0.0
    partial_reads: bool = False
    inclusive: bool = False

    def check(self) -> None:
        for name in ("page_tokens", "prompt_tokens", "top_k"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1, MOST_TOKENS)
        ranges = {"kv_entry_bytes": (1.0, 1e12), "fixed_read_bytes": (0.0, 1e18), "kv_capacity_gb": (0.0, 1e9), "sparsity": (0.0, 1.0)}
        for name, (least, most) in ranges.items():
            if getattr(self, name) is not None:
                real(name, getattr(self, name), least, most)
        if self.kv_entry_bytes is None:
            raise InputError("is missing; expected the KV bytes of one token and layer", "--kv-entry-bytes")
        if self.top_k is not None and self.sparsity is not None:
            raise InputError("cannot be given with --sparsity: each says how many tokens are read", "--top-k")

    def given(self) -> dict[str, Any]:
        """The options that were given, for the provenance."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, (value, default) in values.items() if value != default}


def import_kv_access(path: Path | str, **options: Any) -> tuple[KvTiering, list[str]]:
    """Read an .npz file with `topk` [step][layer][k], whole numbers: the tokens that each layer of a decode step read, −1 where fewer; or with
    `scores` [step][layer][token], of which `top_k` or a share 1 − `sparsity` are read.

    Instance step j · layers + l is layer l of decode step j; block l · pages + p is page p of layer l. In decode step j tokens 0 … prompt_tokens + j
    exist. Options: `AccessOptions`. Raises `InputError` naming file, element and value. Time O(size of the array · log of its last axis).
    """
    path, asked = Path(path), AccessOptions(**options)
    asked.check()
    notices: list[str] = []
    blocks: list[npt.NDArray[np.int32]] = []
    amounts: list[IntArray] = []
    repeated = 0
    try:
        tokens, rows, layers, steps = _rows(path, asked, notices)
        pages = -(-tokens // asked.page_tokens)
        if layers * pages > MOST_TOKENS:
            raise InputError(f"makes {layers} x {pages} blocks, one for each layer and page; expected at most {MOST_TOKENS}")
        counts = np.zeros(steps * layers, np.int64)
        for j, named in enumerate(rows):
            found, amount, counts[j * layers : (j + 1) * layers], twice = _pages(named, asked.page_tokens, pages)
            repeated += twice
            blocks.append(found)
            if asked.partial_reads:
                amounts.append(amount)
        if not counts.any():
            raise InputError("no step reads any token; expected at least one that is read")
    except InputError as error:
        raise error.within(str(path)) from None
    entry = float(asked.kv_entry_bytes or 0.0)
    if repeated:
        notices.append(f"topk names {repeated} tokens again in the same step and layer: each is read once")
    first_token = np.arange(pages) * asked.page_tokens
    prompt = tokens if asked.prompt_tokens is None else asked.prompt_tokens
    born = np.where(first_token < prompt, 0, (first_token - prompt) * layers + np.arange(layers)[:, None])
    tiers = _tiers(asked, layers, notices)
    made = {"importer": "kv-access", "sources": [{"role": "attention", "file": path.name, "sha256": sha256_of(path)}], "options": asked.given()}
    numbering = {
        "layers": layers, "decode_steps": steps, "pages": pages, "page_tokens": asked.page_tokens,
        "step_is": "decode step x layers + layer", "block_is": "layer x pages + page",
    }  # fmt: skip
    instance = KvTiering(
        name=path.stem[:200], provenance={**made, **numbering, "notices": notices}, tiers=tuple(tiers),
        block_bytes=asked.page_tokens * entry, birth_step=born.ravel(), fixed_read_bytes=float(asked.fixed_read_bytes), inclusive=asked.inclusive,
        reads=Reads(
            indptr=np.concatenate(([0], np.cumsum(counts))),
            block=np.concatenate(blocks),
            bytes=np.concatenate(amounts, dtype=np.float64) * entry if asked.partial_reads else None,
        ),
    )  # fmt: skip
    return instance, notices


def _rows(path: Path, asked: AccessOptions, notices: list[str]) -> tuple[int, Iterator[Indices], int, int]:
    """Tokens there are in all, the tokens [layer][k] of each decode step (below 0: none), layers, decode steps."""
    if not read_head(path).startswith(b"PK"):
        raise InputError("not an .npz file; expected one with the array topk [step][layer][k] or scores [step][layer][token]")
    members = read_npz_members(path, ("topk", "scores"))
    if not members:
        raise InputError("has neither topk nor scores; expected topk [step][layer][k], whole numbers, or scores [step][layer][token]")
    name = "topk" if "topk" in members else "scores"
    array, axes = members[name], "[step][layer][k]" if name == "topk" else "[step][layer][token]"
    kinds, what = ("iu", "whole numbers") if name == "topk" else ("f", "floating-point numbers")
    if array.ndim != 3 or array.dtype.kind not in kinds:
        raise InputError(f"{name} must be {what} {axes}, got {array.ndim} dimensions of {array.dtype}")
    if not array.size:
        raise InputError(f"{name} must have at least one step, layer and token, got {' x '.join(map(str, array.shape))}")
    if name == "topk":
        for option in ("top_k", "sparsity"):
            if getattr(asked, option) is not None:
                raise InputError(f"{_flag(option)} is for scores; the file has topk, which says what is read")
        if "scores" in members:
            notices.append("scores are not used: topk says what is read")
    elif asked.top_k is None and asked.sparsity is None:
        raise InputError("has scores: expected --top-k or --sparsity, which say how many tokens a step reads")
    steps, layers, width = array.shape
    tokens = _tokens(name, array, asked, notices)
    if name == "topk":
        return tokens, iter(array), layers, steps
    exist = np.full(steps, tokens) if asked.prompt_tokens is None else asked.prompt_tokens + 1 + np.arange(steps)
    exist = np.minimum(exist, width)
    wanted = np.minimum(asked.top_k, exist) if asked.top_k is not None else read_counts(exist, asked.sparsity or 0.0)
    return tokens, _best(array, exist.tolist(), wanted.tolist()), layers, steps


def _tokens(name: str, array: Indices, asked: AccessOptions, notices: list[str]) -> int:
    """How many tokens there are at the end; every element of the array is checked against those that exist in its step."""
    steps, _, width = array.shape
    if name == "topk" and int(array.min()) < -1:
        at = np.unravel_index(int(array.argmin()), array.shape)
        raise InputError(f"topk{_index(at)} must be a token, or -1 for none, got {array[at]}")
    largest = int(array.max()) if name == "topk" else width - 1
    if largest >= MOST_TOKENS:
        raise InputError(f"{name} must name tokens below {MOST_TOKENS}, got {largest}")
    if asked.prompt_tokens is None:
        notices.append(f"prompt_tokens: all {max(largest + 1, 1)} tokens exist from the start on (--prompt-tokens N where some are made on the way)")
        return max(largest + 1, 1)
    end: int = asked.prompt_tokens + steps
    if name == "topk":
        newest = asked.prompt_tokens + np.arange(steps)
        late = np.flatnonzero(array.max(axis=(1, 2)) > newest)
        if len(late):
            j = int(late[0])
            layer, k = (int(i) for i in np.argwhere(array[j] > newest[j])[0])
            raise InputError(f"topk[{j}][{layer}][{k}] must be a token from 0 to {newest[j]}, which exist in step {j}, got {array[j, layer, k]}")
    elif width < end:
        raise InputError(f"scores must have {end} tokens, --prompt-tokens and one for each step, got {width}")
    return end


def _best(scores: Indices, exist: list[int], wanted: list[int]) -> Iterator[Indices]:
    """The tokens [layer][k] of highest score in each step, among those that exist; the first of equal ones, and none (−1) masked by −inf."""
    for j, (n, k) in enumerate(zip(exist, wanted, strict=True)):
        now = scores[j, :, :n]
        if np.isnan(now).any():
            layer, token = (int(i) for i in np.argwhere(np.isnan(now))[0])
            raise InputError(f"scores[{j}][{layer}][{token}] must be a number, got nan")
        best = np.argsort(-now, axis=1, kind="stable")[:, :k]
        yield np.where(np.isneginf(np.take_along_axis(now, best, axis=1)), -1, best)


def _pages(named: Indices, page_tokens: int, pages: int) -> tuple[npt.NDArray[np.int32], IntArray, IntArray, int]:
    """Of one decode step: the blocks read (rising), the tokens read of each, the blocks of each layer, and how many tokens were named again."""
    layers = len(named)
    token = named.astype(np.int64)
    key = (np.arange(layers)[:, None] * (pages * page_tokens) + token)[token >= 0]
    once = np.unique(key)
    block, amount = np.unique(once // page_tokens, return_counts=True)
    return block.astype(np.int32), amount.astype(np.int64), np.bincount(block // pages, minlength=layers), len(key) - len(once)


def _tiers(asked: AccessOptions, layers: int, notices: list[str]) -> list[Tier]:
    if asked.tier and asked.hardware is not None:
        raise InputError("cannot be given with --hardware: each says which tiers there are", "--tier")
    if asked.tier:
        if asked.kv_capacity_gb is not None:
            raise InputError("is for --hardware; --tier says each tier's capacity", "--kv-capacity-gb")
        return [_tier(text) for text in asked.tier]
    names = [asked.hardware] if isinstance(asked.hardware, str) else list(asked.hardware or ())
    if not names:
        raise InputError("is missing; expected name:capacity_gb:read_gb_per_s:write_gb_per_s, the last with capacity -, or --hardware", "--tier")
    if len(names) > 1 or names[0] not in HARDWARE:
        raise InputError(f"must be one of {', '.join(HARDWARE)}, got {shown(','.join(names))}", "--hardware")
    tiers = []
    for memory, total_gb in HARDWARE[names[0]]:
        capacity = None
        if total_gb is not None:
            weights = asked.fixed_read_bytes * layers
            capacity = USABLE_SHARE * total_gb * 1e9 - weights if asked.kv_capacity_gb is None else asked.kv_capacity_gb * 1e9
            if capacity < 0:
                most = USABLE_SHARE * total_gb * 1e9 / layers
                raise InputError(f"must be at most {most:g} for {layers} layers on {memory}, got {asked.fixed_read_bytes:g}", "--fixed-read-bytes")
            if asked.kv_capacity_gb is None:
                used = f"nine tenths of {total_gb:g} GB less {weights / 1e9:.4g} GB of weights"
                notices.append(f"{memory}: {capacity / 1e9:.4g} GB for the KV cache, {used} (--kv-capacity-gb for another figure)")
        read, write = MEMORIES[memory]
        tiers.append(Tier(name=memory, capacity_bytes=capacity, read_bytes_per_s=read, write_bytes_per_s=write))
    return tiers


def _tier(text: str) -> Tier:
    """One --tier; which tier may be unbounded is the instance's rule."""
    name, *figures = text.rsplit(":", 3)
    try:
        capacity, read, write = figures
        amount = None if capacity.strip() == "-" else float(capacity) * 1e9
        return Tier(name=name, capacity_bytes=amount, read_bytes_per_s=float(read) * 1e9, write_bytes_per_s=float(write) * 1e9)
    except ValueError:  # of float() and of the fields' limits alike
        raise InputError(f"must be name:capacity_gb:read_gb_per_s:write_gb_per_s (capacity - for the last), got {shown(text)}", "--tier") from None


def _index(at: Sequence[Any]) -> str:
    return "".join(f"[{int(k)}]" for k in at)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
