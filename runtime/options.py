"""Session options: one flat mapping of typed values, checked before ONNX Runtime sees them.

`SESSION_OPTIONS` are rocline's own, and so are `SHARED_OPTIONS`, which each provider has under names of its own; every
other key is one provider's (`rocline.runtime.providers`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from rocline.errors import InputError
from rocline.runtime.providers import COUNT, PROVIDERS, SESSION_SETS, SHARED_OPTIONS, OptionType, Provider

SESSION_OPTIONS: Mapping[str, OptionType] = {
    "threads": COUNT,
    "memory_arena": bool,
    "graph_optimization": ("disable", "basic", "extended", "all"),
    "graph_capture": bool,
}
"""Threads inside one operator (0: as many as there are cores); ONNX Runtime's CPU memory arena; graph optimisation;
whether bindings on a GPU replay a captured graph unless told otherwise."""

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass
class Options:
    """Checked options.

    Attributes:
        session: values of `SESSION_OPTIONS` that were given.
        providers: by provider name, the options as the strings that ONNX Runtime takes.
    """

    session: dict[str, Any] = field(default_factory=dict)
    providers: dict[str, dict[str, str]] = field(default_factory=dict)


def check(options: Mapping[str, Any] | None, requested: Iterable[Provider], device_id: int) -> Options:
    """Sorts ``options`` by who takes them and checks each one's type.

    An option that several of the requested providers take goes to each of them, by the name that it has there.

    Raises:
        InputError: an option is unknown to the session and to the requested providers, has a wrong type or value, is
            the session's to set, or says what another one says too.
    """
    if problem := _misfit(device_id, COUNT):
        raise InputError(f"device_id: {problem}")
    if not isinstance(options, Mapping | None):
        raise InputError(f"options: {options!r}, expected a mapping from names to values")
    requested = tuple(requested)
    checked = Options()
    for provider in requested:
        # A provider with a device takes its number by this key.
        checked.providers[provider.name] = {"device_id": str(device_id)} if provider.vendor else {}
    for name, value in (options or {}).items():
        if name in SESSION_OPTIONS:
            _check_value(name, value, SESSION_OPTIONS[name])
            checked.session[name] = value
            continue
        takers = [provider for provider in requested if name in provider.options or name in provider.shared]
        if not takers:
            raise InputError(_unknown(name, requested))
        for provider in takers:
            _check_value(name, value, provider.options[name] if name in provider.options else SHARED_OPTIONS[name])
            for key in provider.shared.get(name, (name,)):
                if key in checked.providers[provider.name]:
                    raise InputError(
                        f"option '{name}': sets {provider.name}'s '{key}', which is given as well; give one"
                    )
                checked.providers[provider.name][key] = str(int(value)) if isinstance(value, bool) else str(value)
    return checked


def whole_number(name: str, value: Any, least: int) -> int:
    """Returns an argument that counts something.

    Raises:
        InputError: it is no whole number, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} is {value!r}, expected a whole number from {least} up")
    return int(value)


def parse(name: str, text: str) -> Any:
    """Turns an option's text, as the command line has it, into the value that the option takes.

    Raises:
        InputError: no provider has the option, or the text is no such value.
    """
    tables = [SESSION_OPTIONS, SHARED_OPTIONS, *(provider.options for provider in PROVIDERS.values())]
    kind = next((table[name] for table in tables if name in table), None)
    if kind is None:
        raise InputError(_unknown(name, PROVIDERS.values()))
    if kind is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    value = int(text) if isinstance(kind, range) and text.isascii() and text.isdecimal() else text
    _check_value(name, value, kind)
    return value


def _check_value(name: str, value: Any, kind: OptionType) -> None:
    if problem := _misfit(value, kind):
        raise InputError(f"option '{name}': {problem}")


def _misfit(value: Any, kind: OptionType) -> str:
    """Says what ``value`` is and what was expected; nothing if it fits."""
    if isinstance(kind, tuple):
        fits, expected = value in kind, f"one of {', '.join(kind)}"
    elif isinstance(kind, range):
        fits = isinstance(value, int) and not isinstance(value, bool) and value in kind
        expected = f"a whole number from {kind.start} to {kind.stop - 1}"
    else:
        fits, expected = isinstance(value, kind), "true or false" if kind is bool else "text"
    return "" if fits else f"{value!r}, expected {expected}"


def _unknown(name: str, providers: Iterable[Provider]) -> str:
    if name == "device_id":
        return "option 'device_id': give it as the session's own argument (device_id=, --device-id)"
    if name in SESSION_SETS:
        return f"option '{name}': the session sets it: {SESSION_SETS[name]}"
    others = [row.name for row in PROVIDERS.values() if name in row.options or name in row.shared]
    if others:
        asked = ", ".join(provider.name for provider in providers)
        return f"option '{name}': belongs to {' and '.join(others)}, but the session asks for {asked}"
    known = [*SESSION_OPTIONS, *(key for row in providers for key in (*row.shared, *row.options))]
    import difflib

    near = difflib.get_close_matches(str(name), known, 1)
    names = ", ".join(dict.fromkeys(known))
    return f"option '{name}': unknown" + (f", did you mean '{near[0]}'?" if near else f", expected one of {names}")
