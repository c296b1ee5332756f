"""The one exception for input that cannot be used, whoever finds it."""

from __future__ import annotations

import math


class InputError(ValueError):
    """Input (a file, a field, an option) is not what headroom can work with.

    The message is one line and says where the trouble is, what stands there and what was expected, so that a command line
    can print it as it is. `source` (a file name or an option) is put in front once it is known.
    """

    def __init__(self, message: str, source: str | None = None) -> None:
        super().__init__(message)
        self.message = " ".join(str(message).split())
        self.source = source

    def __str__(self) -> str:
        return f"{self.source}: {self.message}" if self.source else self.message

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str | None]]:
        # The default would drop `source` when a worker process sends the error home.
        return (type(self), (self.message, self.source))

    def within(self, source: str) -> InputError:
        """The same error with `source` named, unless one is named already."""
        return self if self.source else type(self)(self.message, source)



def shown(value: object, limit: int = 60) -> str:
    """`value` as a short literal for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def exact(value: float) -> str:
    """A limit for a message, all of its digits that count: whole numbers whole, others as short as they can be."""
    if isinstance(value, int):
        return str(value)
    short = f"{value:g}"
    return short if not math.isfinite(value) or float(short) == value else f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)


def span(least: float, most: float) -> str:
    """What follows "must be a number": `from 0 to 10`, or `of at least 0` where the other end is infinite."""
    if math.isinf(most):
        return f"of at least {exact(least)}" if math.isfinite(least) else "of any size"
    return f"from {exact(least)} to {exact(most)}" if math.isfinite(least) else f"of at most {exact(most)}"
