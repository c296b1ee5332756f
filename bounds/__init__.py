"""Valid lower bounds that need no plan, and the recheck of every certificate.

A bound states its proof: closed form, certificate, or a solver's word. The recheck stands beside the bound and uses numpy
alone, exactly or rounding against us; it never calls a solver.
"""

if __name__ != "headroom.bounds":
    raise ImportError(f"this folder is the package headroom.bounds, not {__name__!r}: install the project (make demo) and import headroom.bounds")
