"""Exact and improving methods: engines that know no family, and each family's own methods built on them.

A file named after a family (``<family>.py``, ``<family>_<method>.py``) may use bounds and heuristics; every other file is
an engine, sits below them in the import order, and must not know what a GPU or an expert is.
"""

if __name__ != "headroom.solvers":
    raise ImportError(
        f"this folder is the package headroom.solvers, not {__name__!r}: install the project (make demo) and import headroom.solvers"
    )
