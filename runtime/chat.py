"""Chat templates: a model's own jinja2 template, run in a sandbox, turns a conversation into its prompt."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rocline.errors import InputError, ModelError
from rocline.runtime.hf_config import read_object

Message = Mapping[str, Any]
"""One turn: ``role`` (``system``, ``user``, ``assistant``, ...), ``content``, and what else the template reads."""

_LARGEST = 100_000
"""Most loop turns that the ranges of one rendering may give, and longest text or list that ``*`` may make."""


class ChatTemplate:
    """One model's chat template; renders what transformers' ``apply_chat_template`` renders.

    Args:
        templates: template sources by name; ``default`` is used, or ``tool_use`` where tools are given.
        special_tokens: ``bos_token`` and so on, which the template may print.
        where: what error messages name.

    Raises:
        ModelError: a template is no valid jinja2.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._special_tokens = dict(special_tokens)
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._templates = {name: environment.from_string(source) for name, source in templates.items()}
        except TemplateError as error:
            raise ModelError(f"{where}: chat template is no valid jinja2: {_line(error)}") from None

    @classmethod
    def load(cls, folder: Path, special_tokens: Mapping[str, Any]) -> "ChatTemplate":
        """Reads ``chat_template.jinja`` and ``additional_chat_templates/``, or tokenizer_config.json's chat_template.

        Raises:
            ModelError: there is none, or it is no valid jinja2.
        """
        files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
        if (folder / "chat_template.jinja").is_file():
            files["default"] = folder / "chat_template.jinja"
        if files:
            templates = {name: path.read_text("utf-8") for name, path in files.items()}
        else:
            templates = _from_config(read_object(folder, "tokenizer_config.json").get("chat_template"), folder)
        return cls(templates, special_tokens, str(folder))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Returns the prompt for a conversation.

        Args:
            messages: the conversation, oldest first.
            tools: JSON schemas of functions the model may call.
            add_generation_prompt: end with the words that make the assistant speak.
            variables: whatever else this template reads.

        Raises:
            InputError: a message has no role, or the template refuses the conversation.
            ModelError: the template fails, does what the sandbox forbids, or has no default.
        """
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise InputError(f"message {index}: {message!r}, expected a mapping with 'role' and 'content'")
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ModelError(f"{self._where}: no default chat template, only {', '.join(self._templates)}")
        context = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "range": _BoundedRange(),
            **self._special_tokens,
            **variables,
        }
        try:
            return self._templates[name].render(context)
        except _RefusedError as error:
            raise InputError(f"{self._where}: the chat template refuses this conversation: {_line(error)}") from None
        except Exception as error:  # a template is a program: anything may come out of it
            raise ModelError(f"{self._where}: chat template failed: {type(error).__name__}: {_line(error)}") from None


class _RefusedError(TemplateError):
    """The template itself called ``raise_exception``."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, which also refuses to look at private attributes and to build huge values."""

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("the operator ** is not allowed")
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, list, tuple)) and len(value) * times > _LARGEST:
                raise SecurityError(f"a {type(value).__name__} of {len(value) * times} elements is not allowed")
        return super().call_binop(context, operator, left, right)


class _BoundedRange:
    """``range`` for one rendering: nested loops share one number of turns."""

    def __init__(self) -> None:
        self._left = _LARGEST

    def __call__(self, *bounds: int) -> range:
        turns = range(*bounds)
        self._left -= max((turns.stop - turns.start) // turns.step, 0)
        if self._left < 0:
            raise SecurityError(f"loops over range take more than {_LARGEST} turns")
        return turns


class _Generation(Extension):
    """``{% generation %}``, which marks what an assistant said for training, prints its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _from_config(template: Any, folder: Path) -> dict[str, str]:
    if isinstance(template, str):
        return {"default": template}
    if template is None:
        raise ModelError(f"{folder}: the model has no chat template; continue plain text with 'rocline generate'")
    try:
        return {entry["name"]: entry["template"] for entry in template}
    except (TypeError, KeyError):
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: chat_template is a {type(template).__name__}, "
            "expected text or a list of objects with 'name' and 'template'"
        ) from None


def _raise_exception(message: str) -> None:
    raise _RefusedError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja2's own filter escapes for HTML; chat templates mean plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
