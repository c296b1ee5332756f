"""`headroom import`: real files in, an instance or a workload document out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headroom.instances.importers import Importer

HELP = """Make an instance from real files: a request trace, a solver's configuration, measured throughputs, expert loads, KV reads,
a backlog of requests, a bin packing file.

FORMAT names what FILE is (--list shows the formats and the options each takes). What was chosen, left out or not trusted is
said on stderr and kept in the instance's provenance.
"""


def add_import_command(app: typer.Typer) -> None:
    """Register `headroom import` on the app."""
    app.command("import", help=HELP)(import_command)


def import_command(
    format_name: Annotated[str | None, typer.Argument(metavar="FORMAT", help="File format, see --list.", show_default=False)] = None,
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="The file (expert-…: files) to read.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write: .json, or .npz for an instance.")] = None,
    list_formats: Annotated[bool, typer.Option("--list", help="List the formats and their options.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    performance: Annotated[Path | None, typer.Option(help="Performance table that turns a trace into an instance (azure-llm, mooncake).")] = None,
    trace: Annotated[Path | None, typer.Option(help="Request trace or workload document (splitwise-perf).")] = None,
    trace_format: Annotated[str | None, typer.Option(help="azure-llm, mooncake or workload; otherwise told from the content.")] = None,
    prompt_edges: Annotated[str | None, typer.Option(help="Upper edges of prompt buckets in tokens, 128,256,…, or melange.")] = None,
    output_edges: Annotated[str | None, typer.Option(help="Upper edges of output buckets in tokens, 32,64,…, or melange.")] = None,
    total_rate_per_s: Annotated[float | None, typer.Option(help="Scale the load to this many requests/s in all.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Length of the trace in s, in place of last − first arrival.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the table; default: the one measured most.")] = None,
    hardware: Annotated[str | None, typer.Option(help="GPUs to offer, with commas; default: all with a price (kv-access: gh200, h100-pcie).")] = None,
    tp: Annotated[str | None, typer.Option(help="Tensor parallelisms to offer, with commas; default: all that hold the weights.")] = None,
    price: Annotated[list[str] | None, typer.Option(metavar="NAME=USD", help="Price of one GPU an hour; may be repeated.")] = None,
    stock: Annotated[list[str] | None, typer.Option(metavar="NAME=GPUS", help="GPUs there are of a kind; may be repeated.")] = None,
    split_phases: Annotated[bool, typer.Option("--split-phases", help="Prefill and decode on replicas of their own.")] = False,
    ttft_s: Annotated[float | None, typer.Option(help="Limit on time to first token, s (default 2).")] = None,
    tpot_s: Annotated[float | None, typer.Option(help="Limit on time per output token, s (default 0.1).")] = None,
    max_utilisation: Annotated[float | None, typer.Option(help="Share of a replica's time to plan with (splitwise-perf 0.8, melange 1).")] = None,
    usable_memory_share: Annotated[float | None, typer.Option(help="Share of GPU memory for weights and KV cache (default 0.9).")] = None,
    slices: Annotated[int | None, typer.Option(help="Shares are multiples of 1/SLICES; default: any share (melange: as the file says).")] = None,
    beyond_range: Annotated[str | None, typer.Option(help="Requests longer than measured: drop (default, with a notice) or error.")] = None,
    catalogue: Annotated[Path | None, typer.Option(help="JSON with GPUs and models to lay over the bundled catalogue.")] = None,
    epoch_s: Annotated[float | None, typer.Option(help="Count the trace in epochs of this many s: rates over time.")] = None,
    start_delay_epochs: Annotated[int | None, typer.Option(help="Epochs in which a started replica serves nothing yet (default 0).")] = None,
    start_cost_usd: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]USD", help="Cost of starting a replica, of all types or of a type or GPU; may be repeated.")
    ] = None,
    initial_count: Annotated[
        list[str] | None,
        typer.Option(metavar="[TYPE=]N", help="Replicas that stand before the first epoch (default: as in the first); may be repeated."),
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Devices that share the experts (expert-…).")] = None,
    devices_per_node: Annotated[int | None, typer.Option(help="Devices of a node (default: one node).")] = None,
    slots_per_device: Annotated[int | None, typer.Option(help="Experts that a device holds in a layer (default: the fewest that do).")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts of a layer, where the largest ids do not occur.")] = None,
    current: Annotated[Path | None, typer.Option(help="Placement that stands now: SGLang's physical_to_logical_map or vllm-ascend's map.")] = None,
    max_moves: Annotated[int | None, typer.Option(help="Most experts that devices may load anew, over all layers.")] = None,
    balance_weight: Annotated[float | None, typer.Option(help="Weight of the imbalance (default 1).")] = None,
    traffic_weight: Annotated[float | None, typer.Option(help="Weight of the traffic between layers (default 0).")] = None,
    moves_weight: Annotated[float | None, typer.Option(help="Weight of the experts loaded anew (default 0).")] = None,
    same_node_hop: Annotated[float | None, typer.Option(help="What a token pays to another device of its node (default 1).")] = None,
    other_node_hop: Annotated[float | None, typer.Option(help="What a token pays to a device of another node (default 1).")] = None,
    split: Annotated[str | None, typer.Option(help="An expert's load over its replicas: equal (default) or optimal.")] = None,
    robust: Annotated[str | None, typer.Option(help="What counts of several scenarios: worst (default) or mean.")] = None,
    allow_repeats: Annotated[bool, typer.Option("--allow-repeats", help="An expert may stand twice on a device.")] = False,
    min_holders: Annotated[int | None, typer.Option(help="Devices that must hold each expert (default 1; 2: any one may fail).")] = None,
    n_groups: Annotated[int | None, typer.Option(help="Groups of experts, equal and consecutive.")] = None,
    group_limited: Annotated[bool, typer.Option("--group-limited", help="All replicas of a group's experts stay in one node.")] = False,
    model_layers: Annotated[int | None, typer.Option(help="Layers of the model, dense ones included (for exports).")] = None,
    moe_layer_ids: Annotated[str | None, typer.Option(help="The model's layers that have experts: 3-60 or 1,3,5.")] = None,
    first_moe_layer: Annotated[int | None, typer.Option(help="The model's first layer with experts; the others follow it.")] = None,
    no_transitions: Annotated[bool, typer.Option("--no-transitions", help="Leave out where tokens go from layer to layer.")] = False,
    tier: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:GB:GB/S:GB/S", help="A memory, fastest first: capacity (- for the last), read and write bandwidth; repeated."),
    ] = None,
    kv_capacity_gb: Annotated[float | None, typer.Option(help="Room for KV in the fast memory of --hardware gh200 or h100-pcie (kv-access).")] = None,
    kv_entry_bytes: Annotated[float | None, typer.Option(help="KV bytes of one token and layer (kv-access).")] = None,
    page_tokens: Annotated[int | None, typer.Option(help="Tokens that are moved together (default 1).")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Tokens before the first step, each of which makes one more (default: all).")] = None,
    top_k: Annotated[int | None, typer.Option(help="Tokens that a step and layer reads, where the file has scores.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of tokens that a step and layer does not read, where the file has scores.")] = None,
    fixed_read_bytes: Annotated[float | None, typer.Option(help="Bytes of weights that each layer of a step reads (default 0).")] = None,
    partial_reads: Annotated[bool, typer.Option("--partial-reads", help="Read only the tokens named of a page, not all of it.")] = False,
    inclusive: Annotated[bool, typer.Option("--inclusive", help="The last memory keeps a copy of everything.")] = False,
    capacity_tokens: Annotated[int | None, typer.Option(help="Pack requests into the fewest bins of this many tokens (…-requests).")] = None,
    padding_multiple: Annotated[int | None, typer.Option(help="Tokens of a bin's group count as the next multiple of this (default 1).")] = None,
    slots: Annotated[int | None, typer.Option(help="Run requests through this many slots in the least time (…-requests).")] = None,
    decode_step_s: Annotated[float | None, typer.Option(help="Seconds of a decode step of all slots (cmax: of a unit of time, default 1).")] = None,
    prefill_level: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKENS:SECONDS", help="Time of a prefill of up to so many tokens (- for any number), rising; repeated."),
    ] = None,
    first: Annotated[int | None, typer.Option(help="Take only the first so many requests of the trace.")] = None,
    from_s: Annotated[float | None, typer.Option(help="Take only requests that arrive this many s after the first arrival or later.")] = None,
    until_s: Annotated[float | None, typer.Option(help="Take only requests that arrive before this many s after the first arrival.")] = None,
    too_large: Annotated[str | None, typer.Option(help="Requests that no bin or prefill level holds: keep (default), drop or error.")] = None,
    block_tokens: Annotated[int | None, typer.Option(help="Prompt tokens of a block in hash_ids (default 512).")] = None,
    no_prefixes: Annotated[bool, typer.Option("--no-prefixes", help="Leave hash_ids unread: prompts share nothing.")] = False,
    header: Annotated[str | None, typer.Option(help="cmax: machines-jobs or jobs-machines; default: as many jobs as times follow.")] = None,
) -> None:
    """See HELP."""
    options: dict[str, Any] = {
        "trace": trace, "trace_format": trace_format, "prompt_edges": prompt_edges, "output_edges": output_edges,
        "total_rate_per_s": total_rate_per_s, "duration_s": duration_s, "model": model, "hardware": _listed(hardware),
        "tp": _whole_numbers("--tp", tp), "price": _assignments("--price", price, float), "stock": _assignments("--stock", stock, int),
        "split_phases": split_phases or None, "ttft_s": ttft_s, "tpot_s": tpot_s, "max_utilisation": max_utilisation,
        "usable_memory_share": usable_memory_share, "slices": slices, "beyond_range": beyond_range, "catalogue": catalogue,
        "epoch_s": epoch_s, "start_delay_epochs": start_delay_epochs, "start_cost_usd": _one_or_named("--start-cost-usd", start_cost_usd, float),
        "initial_count": _one_or_named("--initial-count", initial_count, int),
        "devices": devices, "devices_per_node": devices_per_node, "slots_per_device": slots_per_device, "experts": experts, "current": current,
        "max_moves": max_moves, "balance_weight": balance_weight, "traffic_weight": traffic_weight, "moves_weight": moves_weight,
        "same_node_hop": same_node_hop, "other_node_hop": other_node_hop, "split": split, "robust": robust,
        "allow_repeats": allow_repeats or None, "min_holders": min_holders, "n_groups": n_groups, "group_limited": group_limited or None,
        "model_layers": model_layers, "moe_layer_ids": _numbers_and_ranges("--moe-layer-ids", moe_layer_ids), "first_moe_layer": first_moe_layer,
        "no_transitions": no_transitions or None, "tier": tier, "kv_capacity_gb": kv_capacity_gb, "kv_entry_bytes": kv_entry_bytes,
        "page_tokens": page_tokens, "prompt_tokens": prompt_tokens, "top_k": top_k, "sparsity": sparsity, "fixed_read_bytes": fixed_read_bytes,
        "partial_reads": partial_reads or None, "inclusive": inclusive or None,
        "capacity_tokens": capacity_tokens, "padding_multiple": padding_multiple, "slots": slots, "decode_step_s": decode_step_s,
        "prefill_level": prefill_level, "first": first, "from_s": from_s, "until_s": until_s, "too_large": too_large,
        "block_tokens": block_tokens, "no_prefixes": no_prefixes or None, "header": header,
    }  # fmt: skip
    if list_formats:
        _print_formats(as_json)
        return
    importer, read, given = _request(format_name, files or [], {name: value for name, value in options.items() if value is not None}, performance)
    from headroom.instances.errors import InputError

    if output is None:
        raise InputError("is missing; expected a file to write", "--output")
    made, notices = importer.load()(read, **given)
    made.save(output)
    for notice in notices:
        typer.echo(f"note: {notice}", err=True)
    summary = _summary(importer, made, output) | {"notices": notices}
    if as_json:
        from headroom.instances.files import to_json

        typer.echo(to_json(summary), nl=False)
    else:
        typer.echo(_as_text(summary))


def _request(
    format_name: str | None, files: list[Path], given: dict[str, Any], performance: Path | None
) -> tuple[Importer, Path | list[Path], dict[str, Any]]:
    """The importer to call, its file (or files, if it reads several) and its options. Raises `InputError` for what does not belong together."""
    from headroom.instances.errors import InputError, shown
    from headroom.instances.importers import IMPORTERS, PERFORMANCE_IMPORTER

    if format_name is None:
        raise InputError(f"is missing; expected one of {', '.join(IMPORTERS)} and a file", "FORMAT")
    importer = IMPORTERS.get(format_name)
    if importer is None:
        raise InputError(f"must be one of {', '.join(IMPORTERS)}, got {shown(format_name)}", "FORMAT")
    if not files or (len(files) > 1 and not importer.several):
        raise InputError(f"{format_name} reads {'one file or several' if importer.several else 'one file'}, got {len(files)}", "FILE")
    path = files[0]
    if performance is not None:
        if importer.makes != "workload":
            raise InputError(f"is not an option of {format_name}; expected with a trace format", "--performance")
        for option in ("trace", "trace_format"):
            if option in given:
                raise InputError(f"is not an option of {format_name}: FILE is the trace", f"--{option.replace('_', '-')}")
        given = given | {"trace": path, "trace_format": format_name}
        importer, path = IMPORTERS[PERFORMANCE_IMPORTER], performance
    for option in given:
        if option not in importer.options:
            takes = ", ".join(_flag(name) for name in importer.options) or "none"
            needs = " without --performance" if option in IMPORTERS[PERFORMANCE_IMPORTER].options and importer.makes == "workload" else ""
            raise InputError(f"is not an option of {format_name}{needs}; expected {takes}", _flag(option))
    return importer, files if importer.several else path, given


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _whole_numbers(option: str, text: str | None) -> list[int] | None:
    from headroom.instances.errors import InputError, shown

    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"must be whole numbers with commas between them, got {shown(text)}", option) from None


def _numbers_and_ranges(option: str, text: str | None) -> list[int] | None:
    """Numbers and ranges such as 3-60 with commas between them."""
    from headroom.instances.errors import InputError, shown

    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        least, dash, most = part.strip().partition("-")
        most = most if dash else least
        if not (least.isdecimal() and most.isdecimal()) or max(len(least), len(most)) > 6 or int(most) < int(least):
            raise InputError(f"must be whole numbers or ranges such as 3-60 with commas between them, got {shown(text)}", option)
        found += range(int(least), int(most) + 1)
    return found


def _assignments(option: str, texts: list[str] | None, kind: type[int] | type[float]) -> dict[str, int | float] | None:
    """NAME=VALUE texts as a dictionary."""
    from headroom.instances.errors import InputError, shown

    if not texts:
        return None
    result: dict[str, int | float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            if not name.strip() or name.strip() in result:
                raise ValueError
            result[name.strip()] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"must be NAME={what}, each name once, got {shown(text)}", option) from None
    return result


def _one_or_named(option: str, texts: list[str] | None, kind: type[int] | type[float]) -> int | float | dict[str, int | float] | None:
    """One VALUE for all, or NAME=VALUE texts as a dictionary."""
    from headroom.instances.errors import InputError, shown

    if not texts or len(texts) > 1 or "=" in texts[0]:
        return _assignments(option, texts, kind)
    try:
        return kind(texts[0])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"must be {what}, or NAME={what} for each name, got {shown(texts[0])}", option) from None


def _summary(importer: Importer, made: Any, output: Path) -> dict[str, Any]:
    if importer.makes == "expert_placement":
        return {"format": importer.format, "makes": importer.makes, "name": made.name, "sha256": made.digest(), "output": str(output)} | {
            "scenarios": made.scenarios,
            "layers": made.layers,
            "experts": made.experts,
            "devices": made.devices,
            "nodes": made.nodes,
            "slots": made.slots,
            "has": [name for name in ("transition", "current_slot_expert", "load_trace") if getattr(made, name) is not None],
        }
    if importer.makes == "kv_tiering":
        return {"format": importer.format, "makes": importer.makes, "name": made.name, "sha256": made.digest(), "output": str(output)} | {
            "blocks": made.blocks,
            "steps": made.steps,
            "reads": len(made.reads.block),
            "tiers": [tier.name for tier in made.tiers],
        }
    if importer.makes == "request_packing":
        return {"format": importer.format, "makes": importer.makes, "name": made.name, "sha256": made.digest(), "output": str(output)} | {
            "requests": made.count,
            "objective": made.objective,
            "prompt_tokens": int(made.requests.prompt_tokens.sum()),
            "output_tokens": int(made.requests.output_tokens.sum()),
            **({"capacity_tokens": made.capacity_tokens, "groups": made.groups} if made.objective == "bins" else {"slots": made.slots}),
        }
    if importer.makes == "workload":
        figures = {"requests": made.requests, "duration_s": made.duration_s, "total_rate_per_s": made.rate_per_s, "buckets": len(made.buckets)}
        return {"format": importer.format, "makes": "workload", "name": made.name, "output": str(output), **figures}
    unservable = [item.name for item, served in zip(made.work, made.can_serve.any(axis=0), strict=True) if not served]
    return {
        "format": importer.format,
        "makes": importer.makes,
        "name": made.name,
        "sha256": made.digest(),
        "output": str(output),
        "work_items": len(made.work),
        "replica_types": [gpu.name for gpu in made.gpus],
        # Where phases are split, a request is two work items.
        "total_rate_per_s": sum(item.rate_per_s for item in made.work if item.phase != "decode"),
        "unservable": unservable,
        **({} if made.epochs is None else {"epochs": len(made.epochs.rate_per_s), "epoch_s": made.epochs.epoch_s}),
    }


def _as_text(summary: dict[str, Any]) -> str:
    if summary["makes"] == "expert_placement":
        sizes = f"{summary['scenarios']} scenarios x {summary['layers']} layers x {summary['experts']} experts"
        machine = f"{summary['slots']} slots a layer on {summary['devices']} devices in {summary['nodes']} node{'s' if summary['nodes'] > 1 else ''}"
        extras = f"; with {', '.join(summary['has'])}" if summary["has"] else ""
        return f"{summary['output']}: {summary['makes']} instance, {sizes}, {machine}{extras}"
    if summary["makes"] == "kv_tiering":
        sizes = f"{summary['blocks']} blocks x {summary['steps']} steps, {summary['reads']} reads"
        return f"{summary['output']}: {summary['makes']} instance, {sizes}, {len(summary['tiers'])} tiers ({', '.join(summary['tiers'])})"
    if summary["makes"] == "request_packing":
        tokens = f"{summary['prompt_tokens']} prompt and {summary['output_tokens']} output tokens"
        room = f"{summary['slots']} slots" if "slots" in summary else f"bins of {summary['capacity_tokens']} tokens, {summary['groups']} groups"
        return f"{summary['output']}: {summary['makes']} instance, {summary['requests']} requests, {tokens}, {room}"
    rate = f"{summary['total_rate_per_s']:.6g} requests/s"
    if summary["makes"] == "workload":
        duration = f" in {summary['duration_s']:.6g} s" if summary["duration_s"] is not None else ""
        return f"{summary['output']}: workload of {summary['requests']} requests{duration}, {rate}, {summary['buckets']} buckets"
    unservable = f"; no type serves {', '.join(summary['unservable'])}" if summary["unservable"] else ""
    types = summary["replica_types"]
    items = f"{summary['work_items']} work items, {rate}"
    if "epochs" in summary:
        items += f" on average over {summary['epochs']} epochs of {summary['epoch_s']:g} s"
    return f"{summary['output']}: {summary['makes']} instance, {items}, {len(types)} replica types ({', '.join(types)}){unservable}"


def _print_formats(as_json: bool) -> None:
    from headroom.instances.files import to_json
    from headroom.instances.importers import IMPORTERS

    if as_json:
        formats = [
            {
                "format": importer.format,
                "makes": importer.makes,
                "summary": importer.summary,
                "options": [_flag(name) for name in importer.options],
                "options_with_performance": [_flag(name) for name in importer.with_performance],
            }
            for importer in IMPORTERS.values()
        ]
        typer.echo(to_json({"formats": formats}), nl=False)
        return
    for importer in IMPORTERS.values():
        typer.echo(f"{importer.format}{' FILE…' * importer.several}  ->  {importer.makes}\n    {importer.summary}")
        typer.echo(f"    options: {' '.join(_flag(name) for name in importer.options) or 'none'}")
        if importer.with_performance:
            typer.echo(f"    for an instance also: {' '.join(_flag(name) for name in importer.with_performance)}")
