"""Lagrangian bounds of KV tiering: never above enumeration, whatever the multipliers; the rounding cut and usable capacity against all there is."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from headroom.bounds import kv_tiering_search
from headroom.bounds.certificates import CertificateError
from headroom.bounds.kv_tiering import lagrangian_bound, recheck
from headroom.bounds.kv_tiering_lagrangian import Multipliers, certified_value, multipliers_of, rounding_cuts, usable_capacity
from headroom.bounds.kv_tiering_lp import lp, lp_prices
from headroom.bounds.kv_tiering_search import ROUNDS, SHORTEST_ROUND, Dual, search
from headroom.formulations.kv_tiering import evaluate, make_plan
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.kv_tiering import KvTiering
from headroom.solvers.kv_tiering_highs import highs
from headroom.solvers.linear_duals import Algorithm, row_duals
from headroom.verify import verify
from tests.kv_tiering_cases import drifting, reads, tiny, two_tiers
from tests.oracles.kv_tiering import Oracle

PARAMS = SolveParams()
NOTHING = np.zeros(0, np.int64)
EXACT = 1 + 1e-12


def whole(seed: int) -> dict[str, Any]:
    """A tiny instance whose reads are whole and whose blocks have one size, so that it has cuts; sizes thirds for some."""
    data = tiny(seed)
    data["reads"].pop("bytes", None)
    data["block_bytes"] = [[4.0, 4 / 3, 4096.0][seed % 3]] * len(data["block_bytes"])
    for k, tier in enumerate(data["tiers"][:-1]):
        tier["capacity_bytes"] = data["block_bytes"][0] * ((seed + k) % 4)
    return data


def exactly(instance: KvTiering, at: Multipliers) -> tuple[Fraction, float]:
    """L in rationals, block by block and step by step, from its definition; and the size of what is added up."""
    last, cuts = len(instance.tiers) - 1, rounding_cuts(instance)
    read = [1 / Fraction(tier.read_bytes_per_s) for tier in instance.tiers]
    write = [1 / Fraction(tier.write_bytes_per_s) for tier in instance.tiers]
    share, price = rationals(at.tiers), [[*row, Fraction(0)] for row in rationals(at.hold)]
    miss = [Fraction(weight) * Fraction(slope) for weight, slope in zip(at.cut.tolist(), cuts.slope_s_per_byte.tolist(), strict=True)]
    wanted: list[dict[int, Fraction]] = []
    for t in range(instance.steps):
        here = slice(int(instance.reads.indptr[t]), int(instance.reads.indptr[t + 1]))
        wanted.append(dict(zip(instance.reads.block[here].tolist(), rationals(instance.read_bytes(t)[None])[0], strict=True)))

    def pays(i: int, size: Fraction, t: int, a: int | None, b: int) -> Fraction:
        """Block i in step t, from tier a (None: born) to b."""
        cost, stays = size * price[t][b], a in (None, b)
        if a is None and t > 0:
            cost += sum(size * share[t][k] * write[k] for k in ({b, last} if instance.inclusive else {b}))
        if i in wanted[t] and (stays or (instance.inclusive and b == last)):
            cost += wanted[t][i] * share[t][b] * read[b]
        elif a is not None and not stays and not (instance.inclusive and b == last):
            cost += size * (share[t][a] * read[a] + share[t][b] * write[b])
        return cost + (size * miss[t] if i in wanted[t] and not (stays and b == 0) else 0)

    paths = Fraction(0)
    for i in range(instance.blocks):
        size, value = Fraction(float(instance.size[i])), list[Fraction]()
        for t in range(int(instance.birth[i]), int(instance.death[i])):
            came: list[int | None] = [*range(last + 1)] if value else [None]
            value = [min((value[a] if a is not None else 0) + pays(i, size, t, a, b) for a in came) for b in range(last + 1)]
        paths += min(value)
    fixed = sum((share[t][0] * Fraction(float(instance.fixed[t])) * read[0] for t in range(instance.steps)), Fraction(0))
    cut = sum((Fraction(a) * Fraction(b) for a, b in zip(at.cut.tolist(), cuts.constant_s.tolist(), strict=True)), Fraction(0))
    room = rationals(usable_capacity(instance)[None])[0]
    rent = sum((mu * have for row in price for mu, have in zip(row, room, strict=False)), Fraction(0))
    return paths + fixed + cut - rent, float(abs(paths) + fixed + 3 * abs(cut) + rent)


def rationals(rows: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(each) for each in row] for row in rows.tolist()]


def points(instance: KvTiering, rng: np.random.Generator) -> list[Multipliers]:
    """Random and adverse multipliers: all weight on one tier or on the cut, none at all, prices of every size, the start of the search."""
    steps, tiers = instance.steps, len(instance.tiers)
    found = [Dual(instance).start()]
    for n in range(5):
        share = rng.dirichlet(np.full(tiers + 1, [0.1, 1.0][n % 2]), steps)
        if n == 2:
            share = np.eye(tiers + 1)[rng.integers(0, tiers + 1, steps)]
        if n == 3:
            share = np.tile(np.eye(tiers + 1)[tiers], (steps, 1))
        price = rng.random((steps, tiers - 1)) * (rng.random((steps, tiers - 1)) < 0.6) * instance.read_s.max() * 10.0 ** rng.integers(-3, 2)
        found.append(Multipliers(share[:, :tiers], share[:, tiers], price))
    return found


# Against enumeration.


@pytest.mark.parametrize("cases", [tiny, whole])
def test_any_multipliers_prove_no_more_than_the_optimum(cases: Any) -> None:
    positive = with_cuts = 0
    for seed in range(110):
        data, rng = cases(seed), np.random.default_rng(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        with_cuts += rounding_cuts(instance).useful
        for n, at in enumerate(points(instance, rng)):
            certified = certified_value(instance, at.certificate())
            exact, scale = exactly(instance, multipliers_of(instance, at.certificate()))
            assert certified <= best * EXACT, (seed, n)
            # What is given away: the slack of capacities, and rounding.
            assert exact - 3e-9 * scale <= certified <= max(exact, 0.0), (seed, n)
            positive += certified > 0.5 * best
    assert positive >= 60
    assert with_cuts >= (45 if cases is whole else 8)


def test_rounding_is_against_us() -> None:
    """Cuts that fall steeply cancel nearly all that the paths add up to; no price of capacity hides what rounding does."""
    falling = positive = 0
    rng = np.random.default_rng(11)
    for n in range(150):
        steps, blocks, tiers = int(rng.choice([1, 3, 10, 25])), int(rng.integers(4, 11)), 2 + n % 2
        speeds = 10.0 ** np.sort(rng.uniform(0, 9, (tiers, 2)), axis=0)  # slower above
        named = [{"name": f"{k}", "read_bytes_per_s": read, "write_bytes_per_s": write} for k, (read, write) in enumerate(speeds.tolist())]
        named = [tier | {"capacity_bytes": None if k == tiers - 1 else 9.0} for k, tier in enumerate(named)]
        rows = reads(*([i for i in range(blocks) if rng.random() < 0.9] for _ in range(steps)))
        instance = KvTiering(tiers=named, block_bytes=[[1.0, 4 / 3, 1e7 / 3][n % 3]] * blocks, reads=rows)
        share = np.tile(np.eye(tiers + 1)[tiers], (steps, 1)) if n % 2 else rng.dirichlet(np.full(tiers + 1, 0.2), steps)
        at = multipliers_of(instance, Multipliers(share[:, :tiers], share[:, tiers], np.zeros((steps, tiers - 1))).certificate())
        certified = certified_value(instance, at.certificate())
        assert certified <= max(exactly(instance, at)[0], 0), n
        positive += certified > 0
        falling += bool((rounding_cuts(instance).slope_s_per_byte < 0).any())
    assert positive >= 120
    assert falling >= 90


def test_search_and_linear_program_and_optimum() -> None:
    higher = 0
    for seed in range(0, 150, 5):
        data = whole(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        program = lp_prices(instance, PARAMS, Progress(PARAMS))
        with Dual(instance, cuts=False) as dual:
            value, at = search(dual, rounds=ROUNDS[:1])
        # Capacities are multiples of the size, so without cuts the best multipliers are the linear program's.
        assert not at.cut.any()
        assert value <= program.claimed * (1 + 1e-7) + 1e-12 * best, seed
        assert program.claimed <= best * (1 + 1e-7), seed
        if seed % 3 == 0:
            progress = Progress(PARAMS, lambda plan, instance=instance: evaluate(instance, plan))
            highs(instance, PARAMS, progress)
            assert progress.objective == pytest.approx(best, rel=1e-6), seed
        with Dual(instance) as dual:
            value, at = search(dual, rounds=ROUNDS[:2])
        certified = certified_value(instance, at.certificate())
        assert certified <= best * EXACT
        assert certified == pytest.approx(max(value, 0.0), rel=1e-6, abs=1e-7 * best)
        higher += certified > program.claimed * (1 + 1e-3)
    assert higher >= 3  # cuts close a part of what relaxation leaves


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_search_comes_near_the_linear_program(seed: int) -> None:
    changes: dict[str, Any] = {"inclusive": True} if seed % 2 else {}
    instance = KvTiering(**drifting(20, 12, 0.3, 0.2, 0.25, [4, 16][seed // 3], seed, **changes))
    program = lp_prices(instance, PARAMS, Progress(PARAMS))
    with Dual(instance, cuts=False) as dual:
        value, at = search(dual, rounds=ROUNDS[:2])
    assert 0.999 * program.claimed <= value <= program.claimed * (1 + 1e-7)
    assert certified_value(instance, at.certificate()) == pytest.approx(value, rel=1e-7)
    with Dual(instance) as dual:
        value, _ = search(dual, rounds=ROUNDS[:2])
    assert value >= 0.999 * program.claimed
    if seed == 0:
        assert value >= 1.03 * program.claimed  # steps read 6 blocks: halves of reads are worth a lot


def test_duals_of_the_linear_program_recheck() -> None:
    for seed in range(12):
        instance = KvTiering(**tiny(seed))
        bound = lp(instance, PARAMS, Progress(PARAMS))
        assert recheck(instance, bound) == bound.value


@pytest.mark.parametrize("algorithm", ["simplex", "ipm", "pdlp"])
def test_row_duals_by_hand(algorithm: Algorithm) -> None:
    # min x + 2 y + 3 z with x + y >= 1, y >= 0.25, x <= 0.5 (a column's limit), -z >= -9: x = y = 0.5, 1.5. The first row costs 2 a unit (y pays),
    # the second and the last nothing.
    matrix = sp.csc_matrix([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    program = (np.array([1.0, 2.0, 3.0]), matrix, np.array([1.0, 0.25, -9.0]), np.full(3, np.inf), np.array([0.5, np.inf, np.inf]))
    found = row_duals(*program, Progress(PARAMS), algorithm)
    assert found is not None
    assert found.value == pytest.approx(1.5, rel=1e-3)
    assert found.row_dual == pytest.approx(np.array([2.0, 0.0, 0.0]), abs=1e-3)


def test_row_duals_of_what_is_stopped_or_no_program() -> None:
    cost, matrix, lower = np.ones(2), sp.csc_matrix([[1.0, 1.0]]), np.ones(1)
    upper, most = np.full(1, np.inf), np.full(2, np.inf)
    infeasible = row_duals(cost, matrix, np.array([3.0]), upper, np.ones(2), Progress(PARAMS))
    assert infeasible is None or infeasible.value == -math.inf
    stopped = SolveParams(time_limit_s=0.0)
    left = row_duals(cost, matrix, lower, upper, most, Progress(stopped))
    assert left is None or left.value in (-math.inf, 1.0)
    for bad in (1e18, math.inf):
        assert row_duals(cost, sp.csc_matrix([[bad, 1.0]]), lower, upper, most, Progress(PARAMS)) is None


# Certificates from anywhere.


def test_scaled_multipliers_prove_no_more() -> None:
    for seed in range(0, 60, 2):
        data, rng = (tiny, whole)[seed % 4 // 2](seed), np.random.default_rng(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        for at, power in itertools.product(points(instance, rng)[:3], (-12, -6, -1, 1, 6, 12)):
            for part in ("lambda", "mu", "cut", "all"):
                certificate = at.certificate()
                for key in ("lambda", "mu", "cut"):
                    certificate[key] = certificate[key] * (10.0**power if part in (key, "all") else 1.0)
                assert 0.0 <= certified_value(instance, certificate) <= best * EXACT, (seed, power, part)


def test_negative_and_overfull_multipliers_are_taken_as_valid_ones() -> None:
    instance = KvTiering(**whole(5))
    steps, tiers = instance.steps, len(instance.tiers)
    rng = np.random.default_rng(0)
    taken = multipliers_of(
        instance, {"lambda": rng.normal(size=(steps, tiers)), "mu": rng.normal(size=(steps, tiers - 1)), "cut": rng.normal(size=steps)}
    )
    assert (taken.tiers >= 0).all()
    assert (taken.hold >= 0).all()
    assert (taken.cut >= 0).all()
    assert (taken.tiers.sum(axis=1) + taken.cut <= 1.0).all()
    assert certified_value(instance, {"lambda": np.zeros((steps, tiers)), "mu": np.zeros((steps, tiers - 1))}) == 0.0


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"lambda": None}, "certificate has no 'lambda'"),
    ({"mu": None}, "certificate has no 'mu'"),
    ({"lambda": [[0.5, 0.5]]}, r"certificate.lambda must have shape \(2, 2\), got \(1, 2\)"),
    ({"lambda": [[0.5], [0.5]]}, "certificate.lambda must have shape"),
    ({"mu": [0.0, 0.0]}, "certificate.mu must have shape"),
    ({"cut": [0.0]}, "certificate.cut must have shape"),
    ({"cut": [0.0, math.nan]}, "certificate.cut must be finite"),
    ({"mu": [[math.inf], [0.0]]}, "certificate.mu must be finite"),
    ({"lambda": [[1e200, 0.0], [0.5, 0.5]]}, "certificate.lambda must be at most 1e"),
    ({"lambda": [["1", 0.0], [0.5, 0.5]]}, "certificate.lambda must be numbers"),
    ({"lambda": [[0.5, 0.5], [0.5]]}, "certificate.lambda must be numbers"),
    ({"mu": {}}, "certificate.mu must"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message[12:50] for _, message in BROKEN])
def test_what_is_no_certificate_is_refused(change: dict[str, Any], message: str) -> None:
    instance = KvTiering(**two_tiers(4.0, block_bytes=[4.0, 4.0], reads=reads([0, 1], [0, 1])))
    certificate = {"kind": "lagrangian", "lambda": [[0.5, 0.5]] * 2, "mu": [[0.0]] * 2, "cut": [0.0] * 2} | change
    certificate = {key: value for key, value in certificate.items() if value is not None}
    with pytest.raises(CertificateError, match=message):
        certified_value(instance, certificate)


def test_recheck_refuses_other_kinds() -> None:
    instance = KvTiering(**two_tiers(4.0, block_bytes=[4.0], reads=reads([0])))
    for certificate in (None, {}, {"kind": "branching"}):
        with pytest.raises(CertificateError, match=r"certificate\.kind must be 'lagrangian'"):
            recheck(instance, Bound(1.0, "lagrangian", "certificate", certificate))


@pytest.fixture(scope="module")
def proved() -> tuple[KvTiering, dict[str, Any]]:
    """An instance, and a document with a plan (all below, nothing moves) and a Lagrangian bound."""
    instance = KvTiering(**drifting(12, 8, 0.5, 0.3, 0.25, 4, 1))
    with Dual(instance) as dual:
        _, at = search(dual, rounds=ROUNDS[:2])
    bound = lagrangian_bound(instance, at)
    plan = make_plan(np.ones(12, np.int64), NOTHING, NOTHING, NOTHING)
    return instance, {"schema": "headroom/plan/1", "family": "kv_tiering", "plan": plan.dump(), "bounds": [bound.document()]}


def test_an_honest_document_verifies(proved: tuple[KvTiering, dict[str, Any]]) -> None:
    instance, document = proved
    report = verify(instance, copy.deepcopy(document))
    assert report.problems == ()
    assert report.certified_bound == document["bounds"][0]["value"]


FORGED: list[Any] = [
    lambda bound, key: bound.update(value=bound["value"] * (1 + 1e-6)),
    lambda bound, key: bound["certificate"].update({key: bound["certificate"][key] * 0.5}),
    lambda bound, key: bound["certificate"].update({key: bound["certificate"][key] + 0.3}),
    lambda bound, key: bound["certificate"].update({key: 1.0 - bound["certificate"][key]}),
    lambda bound, key: bound["certificate"].update({key: bound["certificate"][key][1:]}),
    lambda bound, key: bound["certificate"].pop(key),
    lambda bound, key: bound["certificate"].update(kind="other"),
    lambda bound, key: bound.update(certificate=None),
    lambda bound, key: bound.update(proof="closed_form"),
]


@pytest.mark.parametrize("key", ["lambda", "mu"])
@pytest.mark.parametrize("forge", FORGED)
def test_forged_documents_are_refused(forge: Any, key: str, proved: tuple[KvTiering, dict[str, Any]]) -> None:
    instance, document = proved[0], copy.deepcopy(proved[1])
    forge(document["bounds"][0], key)
    report = verify(instance, document)
    assert not report.verified
    assert any("bound lagrangian" in problem or "bounds" in problem for problem in report.problems), report.problems


# What it needs.


def test_recheck_loads_no_solver_and_no_numba() -> None:
    program = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"highspy", "ortools", "pyomo", "numba", "scipy"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import numpy as np
from headroom.bounds.kv_tiering import recheck
from headroom.formulations.types import Bound
from headroom.instances.kv_tiering import KvTiering
from tests.kv_tiering_cases import reads, two_tiers

instance = KvTiering(**two_tiers(7.0, block_bytes=[4.0, 4.0], reads=reads([0, 1])))
certificate = {"kind": "lagrangian", "lambda": [[0.0, 1.0]], "mu": [[0.5]], "cut": [0.0]}
assert abs(recheck(instance, Bound(2.0, "lagrangian", "certificate", certificate)) - 2.0) < 1e-6
assert not {"highspy", "ortools", "pyomo", "numba", "scipy"} & set(sys.modules)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_recheck_of_a_large_instance_is_quick() -> None:
    instance = KvTiering(**drifting(4000, 500, 0.1, 0.1, 0.25, 8, 0))
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(3), 500)
    at = Multipliers(share[:, :2], share[:, 2], rng.random((500, 1)) * 0.1)
    began = time.process_time()
    assert certified_value(instance, at.certificate()) >= 0.0
    assert time.process_time() - began < 3.0  # 0.3 s on an idle core


def test_a_sample_of_the_blocks_finds_where_to_set_out_from(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = KvTiering(**drifting(200, 60, 0.2, 0.2, 0.25, 8, 0))
    with Dual(instance) as dual:
        start = dual.start()
        whole_value, whole_slope = dual.at(start)
        everything, _ = search(dual, rounds=ROUNDS[:1])
        monkeypatch.setattr(kv_tiering_search, "SAMPLE_READS", len(instance.reads.block) // 4)
        with dual.sampled() as sample:
            assert sample.items.count == 50
            value, slope = sample.at(start)
        assert value == pytest.approx(whole_value, rel=0.15)
        assert slope.tiers.sum() == pytest.approx(whole_slope.tiers.sum(), rel=0.15)
        # What the sample says is an estimate: the search may report nothing but what all blocks together prove.
        reported: list[tuple[float, Multipliers]] = []
        found, at = search(dual, on_best=lambda value, at: reported.append((value, at)), rounds=ROUNDS[:1])
        assert dual.at(at)[0] == pytest.approx(found, rel=1e-12)
        for live, point in reported:
            assert dual.at(point)[0] == pytest.approx(live, rel=1e-12)
    assert found >= 0.995 * everything


def test_a_round_has_as_many_steps_as_there_is_time_for() -> None:
    instance = KvTiering(**drifting(20, 12, 0.3, 0.2, 0.25, 4, 0))
    with Dual(instance) as dual:
        calls = [0]
        asked = dual.at

        def counted(point: Multipliers) -> tuple[float, Multipliers]:
            calls[0] += 1
            return asked(point)

        dual.at = counted  # type: ignore[method-assign]
        value, at = search(dual, start=dual.start(), rounds=((0.1, 300),), remaining_s=lambda: 1e-12)
    assert calls[0] == 1 + SHORTEST_ROUND
    assert certified_value(instance, at.certificate()) == pytest.approx(value, rel=1e-7)
