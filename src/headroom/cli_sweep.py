"""`headroom sweep`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.cli_common import (
    JsonOption,
    SpareOption,
    ThreadsOption,
    TimeLimitOption,
    at_least,
    bytes_of,
    check_output,
    note,
    positive,
    read_instance,
    with_spare,
    write_json,
    write_out,
)

if TYPE_CHECKING:
    from headroom.formulations.types import SolveParams
    from headroom.interrupts import Watch
    from headroom.sweep_kinds import Sweeper
    from headroom.sweep_types import Sweep

HELP = """Say what prices, caps, load, latency limits, moves and memory cost, by warm-started re-solves.

One sweep a command. Values are a list (1,2,4) or lo:hi:n (a rate's are spaced evenly in ratio). A price sweep also finds every price between
its ends at which the best mix changes. --moves is for expert placements that have a current one; --vary capacity:hbm=8GiB:64GiB:8 for memory
tiers. --slo reads a performance table (X) and --trace, as headroom import splitwise-perf does.

Exit code: 0 done (also by a time limit), 1 no plan anywhere, 130/143 interrupted; what is known by then is written.
"""
PLOTS = (".png", ".svg", ".html")
SLO_ONLY = "is an option of --slo"


def add_sweep_command(app: typer.Typer) -> None:
    """Register `headroom sweep` on the app."""
    app.command("sweep", help=HELP)(sweep_command)


def sweep_command(
    x: Annotated[str, typer.Argument(metavar="X", help="Instance, .json or .npz (-: JSON on stdin); with --slo a performance table.")],
    price: Annotated[str | None, typer.Option(metavar="NAME=VALUES", help="Sweep a type's price, or a GPU's: H100=1:6:11.")] = None,
    cap: Annotated[str | None, typer.Option(metavar="NAME[=VALUES]", help="Sweep a type's max_count, or a pool's max_gpus.")] = None,
    rate: Annotated[str | None, typer.Option(metavar="VALUES", help="Sweep the total rate, requests/s: 1:4096:13.")] = None,
    moves: Annotated[str | None, typer.Option(metavar="VALUES", help="Sweep max_moves of a placement: 0:200:21; both ends are added.")] = None,
    vary: Annotated[str | None, typer.Option(metavar="WHAT[:NAME][=VALUES]", help="Sweep any quantity that headroom families lists.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="What one more and one less of every limit is worth.")] = False,
    slo: Annotated[bool, typer.Option("--slo", help="Sweep latency limits over --trace.")] = False,
    ttft_s: Annotated[str | None, typer.Option(metavar="VALUES", help="Limits on time to first token, s (default 2).")] = None,
    tpot_s: Annotated[str | None, typer.Option(metavar="VALUES", help="Limits on time per output token, s (default 0.1).")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Request trace or workload document (--slo).")] = None,
    import_option: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Other import option (--slo), as total_rate_per_s=50; may be repeated.")
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="M", help="Method (see headroom families); auto picks one by size.")] = "auto",
    time_limit: TimeLimitOption = None,
    total_time_limit: Annotated[float | None, typer.Option("--total-time-limit", metavar="S", help="Seconds for the whole sweep.")] = None,
    gap: Annotated[float | None, typer.Option("--gap", metavar="G", help="Stop each solve at this relative gap (0.01: 1%).")] = None,
    threads: ThreadsOption = 1,
    cold: Annotated[bool, typer.Option("--cold", help="Solve every value from scratch, reuse nothing.")] = False,
    spare: SpareOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write .parquet, .csv or .json.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .html.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> int:
    """See HELP."""
    from headroom.formulations.types import SolveParams
    from headroom.instances.errors import InputError
    from headroom.sweep_types import check_sweep_file

    if gap is not None and not (gap >= 0 and math.isfinite(gap)):
        raise InputError(f"must be at least 0, got {gap:g}", "--gap")
    for path in (output, plot):
        check_output(path, x if x != "-" else None, trace)
    if output is not None:
        check_sweep_file(output)
    if plot is not None and plot.suffix not in PLOTS:
        raise InputError(f"must end in {', '.join(PLOTS[:-1])} or {PLOTS[-1]}", str(plot))
    params = SolveParams(time_limit_s=positive(time_limit, "--time-limit"), gap_limit=gap, threads=at_least(threads, 1, "--threads"))
    common = {"method": method, "total": positive(total_time_limit, "--total-time-limit"), "cold": cold}
    what = asked(price, cap, rate, moves, vary, shadow, slo)
    if what[0] == "slo":
        if spare is not None:
            raise InputError("does not apply to --slo", "--spare")
        maker = slo_sweep(x, trace, ttft_s, tpot_s, import_option or [], params, common)
    else:
        for given, option in ((trace, "--trace"), (ttft_s, "--ttft-s"), (tpot_s, "--tpot-s"), (import_option or None, "--set")):
            if given is not None:
                raise InputError(SLO_ONLY, option)
        maker = instance_sweep(x, spare, what, params, common)
    return run_sweep(maker, output, plot, as_json)


def asked(
    price: str | None, cap: str | None, rate: str | None, moves: str | None, vary: str | None, shadow: bool, slo: bool
) -> tuple[str, str, str | None]:
    """The one quantity that the options name, its index and the text of its values. Raises `InputError`."""
    from headroom.instances.errors import InputError

    found: list[tuple[str, str, str | None]] = []
    for name, text in (("price", price), ("cap", cap)):
        if text is not None:
            index, equals, values = text.rpartition("=") if "=" in text else (text, "", "")
            found.append((name, index, values if equals else None))
    found += [(name, "", text) for name, text in (("rate", rate), ("moves", moves)) if text is not None]
    if vary is not None:
        head, equals, values = vary.rpartition("=") if "=" in vary else (vary, "", "")
        name, _, index = head.partition(":")
        found.append((name, index, values if equals else None))
    found += [(name, "", None) for name, wanted in (("shadow", shadow), ("slo", slo)) if wanted]
    if len(found) != 1:
        raise InputError(f"expected one of --price, --cap, --rate, --moves, --vary, --shadow, --slo, got {len(found)}", "sweep")
    return found[0]


def instance_sweep(x: str, spare: int | None, what: tuple[str, str, str | None], params: SolveParams, common: dict[str, Any]) -> Sweeper:
    """The sweep of an instance's quantity."""
    from headroom.sweep import quantity_of, sweeper

    given = read_instance(x)
    instance, overrides = with_spare(given, spare)
    name, index, text = what
    values = None
    if text is not None:
        chosen = quantity_of(instance, name, index)
        values = values_of(text, chosen.label, chosen.spacing == "log", chosen.whole, chosen.unit == "bytes")
    made = sweeper(instance, name, index, values, method=common["method"], params=params, total_time_limit_s=common["total"], cold=common["cold"])
    made.given, made.parameters = given, {**made.parameters, **overrides}
    return made


def slo_sweep(
    x: str, trace: Path | None, ttft_s: str | None, tpot_s: str | None, settings: list[str], params: SolveParams, common: dict[str, Any]
) -> Sweeper:
    """The sweep of latency limits over a performance table and a trace."""
    from headroom.cli_tools import parse_overrides
    from headroom.instances.errors import InputError
    from headroom.instances.gpu_selection_import import DEFAULT_TPOT_S, DEFAULT_TTFT_S
    from headroom.sweep import parameters_of
    from headroom.sweep_slo import SloSweep
    from headroom.sweep_solver import Solver

    if trace is None:
        raise InputError("is missing; expected a request trace or a workload document", "--trace")
    options = import_options(parse_overrides(settings))
    ttft = values_of(ttft_s, "--ttft-s") if ttft_s is not None else [DEFAULT_TTFT_S]
    tpot = values_of(tpot_s, "--tpot-s") if tpot_s is not None else [DEFAULT_TPOT_S]
    solver = Solver(common["method"], params, common["total"], common["cold"])
    return SloSweep(x, trace, ttft, tpot, solver, parameters_of(params, common["total"], common["cold"]), options)


IMPORT_OPTIONS: dict[str, str] = {
    "trace_format": "text", "prompt_edges": "edges", "output_edges": "edges", "total_rate_per_s": "number", "duration_s": "number", "model": "text",
    "hardware": "names", "tp": "whole numbers", "price": "object", "stock": "object", "split_phases": "true or false", "max_utilisation": "number",
    "usable_memory_share": "number", "slices": "whole number", "beyond_range": "text", "catalogue": "text",
}  # fmt: skip
"""Options of the import that a sweep of latency limits takes, with what each must be."""


def import_options(given: dict[str, Any]) -> dict[str, Any]:
    """The options as the importer takes them. Raises `InputError` for an unknown one and for a value of the wrong kind."""
    from headroom.instances.errors import InputError, shown

    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in IMPORT_OPTIONS:
            raise InputError(f"{shown(name)} is not an option of --slo; expected one of {', '.join(IMPORT_OPTIONS)}", "--set")
        wanted = IMPORT_OPTIONS[name]
        if isinstance(value, str) and wanted == "names":
            value = [part.strip() for part in value.split(",")]
        if wanted == "whole numbers" and not isinstance(value, list):
            value = [value] if not isinstance(value, str) else [int(part) if part.strip().isdecimal() else part for part in value.split(",")]
        if not _is(value, wanted):
            raise InputError(f"{name} must be {wanted if wanted != 'object' else 'an object of numbers'}, got {shown(value)}", "--set")
        found[name] = value
    return found


def _is(value: Any, wanted: str) -> bool:
    def number(item: Any) -> bool:
        return isinstance(item, (int, float)) and not isinstance(item, bool)

    def whole(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool)

    match wanted:
        case "number":
            return number(value)
        case "whole number":
            return whole(value)
        case "true or false":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, dict) and all(number(item) for item in value.values())
        case "names":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "whole numbers":
            return isinstance(value, list) and all(whole(item) for item in value)
        case "edges":
            return isinstance(value, str) or (isinstance(value, list) and all(whole(item) for item in value))
    return isinstance(value, str)


def values_of(text: str, what: str, in_ratio: bool = False, whole: bool = False, sizes: bool = False) -> list[float]:
    """`1,2,4`, `lo:hi:n` (n values from lo to hi), or for whole numbers `lo:hi` (each of them); `sizes` may be 4GiB. Raises `InputError`."""
    from headroom.instances.errors import InputError, shown

    form = ("lo:hi:n such as 1:4:7" if not sizes else "lo:hi:n such as 1GiB:4GiB:7") + (" or lo:hi" if whole else "")
    try:
        if sizes:
            text = _in_bytes(text)
        values = _range(text, form, in_ratio, whole) if ":" in text else [float(item) for item in text.split(",")]
        if not all(math.isfinite(value) for value in values):
            raise ValueError
    except InputError as error:
        raise error.within(what) from None
    except (ValueError, OverflowError):
        raise InputError(f"must be a list such as {'1GiB,2GiB' if sizes else '1,2,4'} or {form}, got {shown(text)}", what) from None
    return sorted(set(values))


def _in_bytes(text: str) -> str:
    """The values with each size (8GiB, 500MB) as a number of bytes; n in lo:hi:n is none. Raises ValueError."""
    from headroom.instances.errors import InputError

    def plain(item: str) -> str:
        try:
            return repr(float(item))
        except ValueError:
            try:
                return str(bytes_of(item, ""))
            except InputError:
                raise ValueError(item) from None

    low, colon, rest = text.partition(":")
    if not colon:
        return ",".join(plain(item) for item in text.split(","))
    high, *count = rest.split(":")
    return ":".join([plain(low), plain(high), *count])


def _range(text: str, form: str, in_ratio: bool, whole: bool) -> list[float]:
    """The values of lo:hi:n. Raises `InputError` about its ends, ValueError about anything else."""
    from headroom.instances.errors import InputError, shown

    low, high, *count = (float(item) for item in text.split(":"))
    if low >= high:
        raise InputError(f"must have lo < hi in {form}, got {shown(text)}: {low:g} is not below {high:g}")
    if in_ratio and low <= 0:
        raise InputError(f"must have lo > 0 in {form}, since values are spaced evenly in ratio, got {shown(text)}")
    if not (len(count) == 1 or (whole and not count)) or not low < high:
        raise ValueError
    n = int(count[0]) if count else int(high - low) + 1
    if not 2 <= n <= 10_000 or (count and n != count[0]):
        raise ValueError
    steps = [k / (n - 1) for k in range(n)]
    values = [low * (high / low) ** t if in_ratio else low + (high - low) * t for t in steps]
    values[-1] = high
    return [float(round(value)) for value in values] if whole else values


def run_sweep(sweeper: Sweeper, output: Path | None, plot: Path | None, as_json: bool) -> int:
    """Run it in a thread while the main thread hears signals; write what there is when it ended or was ended."""
    from headroom.cli_solve import LiveLine
    from headroom.cli_sweep_text import as_text
    from headroom.interrupts import leave, signals

    def work(watch: Watch[Sweep]) -> Sweep:
        sweeper.solver.on_start = watch.follow
        return sweeper.run()

    watch: Watch[Sweep] = signals.watch(work)
    live = LiveLine()
    ended = watch.wait(lambda: live.paint(watch.progress))
    live.clear()
    found = watch.result() if ended else sweeper.so_far("interrupted")
    something = bool(found.points or found.shadow_prices)
    if something:
        if output is not None:
            found.save(output)
        if plot is not None:
            _draw(found, plot)
        if as_json:
            write_json(found.document())
        else:
            write_out(as_text(found))
        for text in found.notes:
            note(text)
    code = _exit_code(found, something, output)
    if not ended:
        leave(code)
    signals.release()
    return code


def _draw(found: Sweep, path: Path) -> None:
    """The plot; one that cannot be drawn from what an interrupted sweep has is said, not raised."""
    from headroom.instances.errors import InputError

    try:
        found.plot(path)
    except InputError as error:
        if found.stop == "completed" and any(point.plan is not None for point in found.points):
            raise
        note(str(error))


def _exit_code(found: Sweep, something: bool, output: Path | None) -> int:
    from headroom.interrupts import signals

    if signals.exit_code is not None:
        kept = f"; what is known so far was written to {output}" if output is not None and something else "; this is what is known so far"
        note("interrupted" + (kept if something else " before there was anything to keep"))
        return signals.exit_code
    return 0 if any(point.plan is not None for point in found.points) else 1
