"""What a session was asked to run on, what it runs on, and why the two differ."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Fallback:
    """A provider that was asked for and is not used.

    Attributes:
        provider: ONNX Runtime's name.
        reason: why it cannot run here.
        fix: what to do about it.
    """

    provider: str
    reason: str
    fix: str

    @property
    def why(self) -> str:
        """Reason and fix as one phrase."""
        return f"{self.reason}; to mend it: {self.fix}"


@dataclass
class Report:
    """Where a session runs.

    Attributes:
        requested: ONNX Runtime's names of the providers asked for, in order.
        active: those in use, in order, as ONNX Runtime itself reports them.
        fallbacks: one entry for each provider of ``requested`` that is not in ``active``.
        notes: what was changed in the model to make it run, one line each.
    """

    requested: tuple[str, ...]
    active: tuple[str, ...]
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
    _place: Callable[[], Mapping[str, Mapping[str, int]]] = field(default=dict, repr=False, compare=False)

    @cached_property
    def placement(self) -> Mapping[str, Mapping[str, int]]:
        """Node count by provider and operator of the optimised graph, subgraphs included.

        ONNX Runtime tells it only in its log while a session is created; so the first use creates a second session
        with the same model, providers and options, reads its log, and drops it: that takes a session's time and
        memory once more.
        """
        return self._place()

    def warning(self) -> str | None:
        """Returns the one line that says what was asked, what runs, why and how to mend it; None without a fallback."""
        if not self.fallbacks:
            return None
        asked = ", ".join(fallback.provider for fallback in self.fallbacks)
        reasons = "; ".join(dict.fromkeys(fallback.why for fallback in self.fallbacks))
        return f"{asked} cannot run here, using {', '.join(self.active)}: {reasons}"

    def as_dict(self, *, placement: bool = False) -> dict[str, Any]:
        """Returns the fields as JSON knows them; the placement only if asked for, since it takes a second session."""
        found = {
            "requested": list(self.requested),
            "active": list(self.active),
            "fallbacks": [asdict(fallback) for fallback in self.fallbacks],
            "notes": list(self.notes),
        }
        return {**found, "placement": self.placement} if placement else found

    def as_text(self, *, placement: bool = False) -> str:
        """Returns where the session runs, one fact a line, without the reasons that `warning` gives."""
        lines = [f"ran on {', '.join(self.active)}", *self.notes]
        if placement:
            for provider, operators in self.placement.items():
                counts = ", ".join(f"{operator} {count}" for operator, count in operators.items())
                lines.append(f"{provider}: {sum(operators.values())} nodes: {counts}")
        return "\n".join(lines)
