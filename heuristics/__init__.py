"""Offline baselines and online policies, under the names the field uses for them.

An online policy is fed arrivals in order and decides on what it has seen; it never holds the instance's future.
"""

if __name__ != "headroom.heuristics":
    raise ImportError(
        f"this folder is the package headroom.heuristics, not {__name__!r}: install the project (make demo) and import headroom.heuristics"
    )
