import json
from datetime import datetime

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from rocline.errors import InputError, ModelError
from rocline.runtime.chat import ChatTemplate
from rocline.runtime.tokenizer import TextTokenizer

MESSAGES = [
    {"role": "system", "content": "You are <b>terse</b>."},
    {"role": "user", "content": "  What is 'x'?\n"},
    {"role": "assistant", "content": "A letter: “x” & more."},
    {"role": "user", "content": "漢字 🙂 <|im_end|>"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b", "parameters": {"x": [1, 2.5, None]}}}]

TEMPLATES = {
    "blocks and white space": """
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
  {{ bos_token + message.content | trim }}
    {% else %}
{{ message.role | upper }}: {{ message.content }}{{ eos_token }}
    {% endif %}
{% endfor %}
  {% if add_generation_prompt %}
assistant:
{% endif %}
tail
""",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
    "{% if loop.index0 == 3 %}{% break %}{% endif %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "namespace and slices": "{% set ns = namespace(last='') %}{% for m in messages[1:] %}{% set ns.last = m.content %}"
    "{{ loop.previtem is defined }}{% endfor %}{{ ns.last[::-1] }}{{ messages[-1]['content'].split() }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ tools | tojson(ensure_ascii=True) }}"
    "{{ {'b': 1, 'a': '<'} | tojson(separators=(',', ':'), sort_keys=True) }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n{% set x = m.content %}"
    "{{ x }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ x is defined }}",
    "macro": "{% macro turn(m, end='') %}<{{ m.role }}>{{ m.content }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m, end=eos_token) }}{% endfor %}",
    "missing things": "{{ pad_token }}{{ messages[0].tool_calls }}{{ 'd' if documents is none else 'D' }}{{ tools }}",
    "ranges and repetition": "{% for i in range(3, 0, -1) %}{{ i }}{{ '=' * 5 }}{% endfor %}{{ 2 * 3 }}{{ [0] * 2 }}",
    "date": "{{ strftime_now('%Y-%m') }}",
}


def render(source, messages=MESSAGES, **variables):
    return ChatTemplate({"default": source}, TOKENS, "model").render(messages, **variables)


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name, tools, generation_prompt):
    source = TEMPLATES[name]
    (expected,), _ = render_jinja_template(
        [MESSAGES], tools=tools, chat_template=source, add_generation_prompt=generation_prompt, **TOKENS
    )
    assert expected
    assert render(source, tools=tools, add_generation_prompt=generation_prompt) == expected


def test_smollm2_renders_as_transformers_does(smollm2):
    template = ChatTemplate.load(smollm2, TextTokenizer(smollm2).special_tokens)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for messages in (MESSAGES, MESSAGES[1:2], MESSAGES[1:]):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert template.render(messages) == expected


def test_the_date_is_today():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ("from config", {}, "from config"),
        ([{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "t"}], {}, "listed"),
        ("from config", {"chat_template.jinja": "from file"}, "from file"),
    ],
)
def test_templates_are_found(tmp_path, config, files, expected):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": config}))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert ChatTemplate.load(tmp_path, {}).render(MESSAGES) == expected


def test_tools_choose_the_template_for_tools(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("tools")
    template = ChatTemplate.load(tmp_path, {})
    assert (template.render(MESSAGES), template.render(MESSAGES, tools=TOOLS)) == ("plain", "tools")


MALICIOUS = {
    "class": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "changes a message": "{{ messages.append(1) }}",
    "changes the caller's dict": "{{ messages[0].update({'role': 'x'}) }}",
    "long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "range": "{% for i in range(999999999) %}x{% endfor %}",
    "nested ranges": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "huge text": "{{ 'a' * 9999999999 }}",
    "huge list": "{{ ([0] * 99999) * 99999 }}",
    "huge number": "{{ 9 ** 9 ** 9 }}",
    "file": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_template_that_does_what_it_must_not_is_refused_in_one_line(name):
    with pytest.raises(ModelError, match=r"^model: chat template failed: ") as caught:
        render(MALICIOUS[name])
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_the_conversation_says_why():
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('Roles must\nalternate') }}{% endif %}"
    with pytest.raises(InputError, match=r"^model: the chat template refuses this conversation: Roles must alternate$"):
        render(source)


def test_broken_syntax_is_named_when_the_template_is_read():
    with pytest.raises(ModelError, match="chat template is no valid jinja2"):
        ChatTemplate({"default": "{% for %}"}, {}, "model")


def test_a_template_that_fails_is_named():
    with pytest.raises(ModelError, match="chat template failed: UndefinedError"):
        render("{{ nothing.at.all }}")


@pytest.mark.parametrize("messages", [["hello"], [{"content": "no role"}]])
def test_what_is_no_message_is_refused(messages):
    with pytest.raises(InputError, match="message 0: "):
        render("x", messages)


def test_a_model_without_template_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"no chat template; .*rocline generate"):
        ChatTemplate.load(tmp_path, {})


def test_a_list_of_templates_without_default_names_what_there_is(tmp_path):
    template = ChatTemplate({"rag": "x"}, {}, "model")
    with pytest.raises(ModelError, match="no default chat template, only rag"):
        template.render(MESSAGES)


@pytest.mark.parametrize("config", [3, [{"name": "default"}], [1]])
def test_a_chat_template_of_the_wrong_kind_is_named(tmp_path, config):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": config}))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: chat_template is a"):
        ChatTemplate.load(tmp_path, {})
