"""The options that every command with a session takes: one decorator, one keyword."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from rocline.errors import InputError
from rocline.runtime.options import SESSION_OPTIONS, parse
from rocline.runtime.providers import PROVIDERS


def session_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the session's options to a click command.

    The command receives one keyword, ``session_arguments``, to splat into `Session`, `Generator` or `Embedder`:
    ``Session(model, **session_arguments)``.
    """

    @wraps(command)
    def wrapper(
        *args: Any,
        provider: tuple[str, ...],
        strict: bool,
        device_id: int,
        threads: int | None,
        memory_arena: bool | None,
        graph_optimization: str | None,
        option: tuple[str, ...],
        **kwargs: Any,
    ) -> None:
        given = {"threads": threads, "memory_arena": memory_arena, "graph_optimization": graph_optimization}
        options = {name: value for name, value in given.items() if value is not None}
        options.update(_parse(option))
        arguments = {
            "providers": list(provider) or None,
            "strict": strict,
            "device_id": device_id,
            "options": options,
        }
        command(*args, session_arguments=arguments, **kwargs)

    for decorator in reversed(_OPTIONS):
        wrapper = decorator(wrapper)
    return wrapper


_OPTIONS: Sequence[Callable[[Callable[..., None]], Callable[..., None]]] = (
    click.option(
        "--provider",
        multiple=True,
        metavar="NAME",
        help=f"Execution provider ({', '.join(PROVIDERS)}); repeat it for an order of preference.  "
        "[default: rocm, then cpu]",
    ),
    click.option("--strict", is_flag=True, help="Fail where a provider asked for cannot be used."),
    click.option(
        "--device-id",
        "--device",
        "device_id",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Which GPU.",
    ),
    click.option("--threads", type=click.IntRange(min=0), help="CPU threads in one operator; 0: one a core."),
    click.option("--memory-arena/--no-memory-arena", default=None, help="Keep freed CPU memory for later runs."),
    click.option(
        "--graph-optimization",
        type=click.Choice(SESSION_OPTIONS["graph_optimization"]),  # type: ignore[arg-type]
        help="How far ONNX Runtime rewrites the graph.  [default: all]",
    ),
    click.option("--option", multiple=True, metavar="KEY=VALUE", help="An option of a provider; repeatable."),
)


def _parse(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r}, expected KEY=VALUE", param_hint="--option")
        try:
            options[name] = parse(name, text)
        except InputError as error:
            raise click.BadParameter(str(error), param_hint="--option") from None
    return options
