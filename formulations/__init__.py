"""What a solution is: the plan, ``evaluate`` (the only source of an objective) and the Pyomo model of each family.

The types that all methods share (Evaluation, Bound, Outcome, SolveParams) and every tolerance live here too. ``evaluate``
knows no solver and shares no code with the models, so that each checks the other.
"""

if __name__ != "headroom.formulations":
    raise ImportError(
        f"this folder is the package headroom.formulations, not {__name__!r}: install the project (make demo) and import headroom.formulations"
    )
