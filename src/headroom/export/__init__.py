"""Plans in the forms that other systems read: one module a family, its targets listed in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom.instances.errors import InputError, shown

if TYPE_CHECKING:
    from headroom.documents import PlanDocument
    from headroom.formulations.types import Violation
    from headroom.instances.base import Instance


class InfeasiblePlanError(Exception):
    """The plan breaks constraints of the instance it is to be exported for."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__(f"the plan violates {len(violations)} constraint{'s' * (len(violations) > 1)}")
        self.violations = violations


def export(instance: Instance, document: PlanDocument, target: str, force: bool = False) -> str:
    """The text of the exported file.

    Overrides that the document records are applied to the instance first. Raises `InputError` for an unknown target, a document without a
    plan or a plan that does not fit, and `InfeasiblePlanError` for a plan that violates a constraint unless `force` is set.
    """
    from headroom.documents import strengthen
    from headroom.registry import load
    from headroom.run import family_of

    family = family_of(instance)
    fitting = family.exporters_for(instance)
    if target not in fitting:
        mode = f" in mode {family.mode_of(instance)}" if target in family.exporters else ""
        raise InputError(f"must be one of {', '.join(fitting) or 'none'} for {family.name}{mode}, got {shown(target)}", "--to")
    if document.family != instance.family:
        raise InputError(f"family must be {instance.family!r}, got {document.family!r}", document.source)
    if document.plan is None:
        raise InputError("holds no plan; expected one to export", document.source)
    if document.instance_sha256 not in (None, instance.digest()) and not force:
        raise InputError("was made for another instance (its sha256 differs); --force exports it all the same", document.source)
    asked, _, weaker = strengthen(instance, document.parameters)
    if weaker and not force:
        raise InputError(weaker[0], document.source)
    try:
        evaluation: Any = load(family.evaluate)(asked, document.plan)
    except InputError as error:
        raise error.within(document.source) from None
    if not evaluation.feasible and not force:
        raise InfeasiblePlanError(evaluation.violations)
    text: str = fitting[target].load()(asked, document)
    return text


__all__ = ["InfeasiblePlanError", "export"]
