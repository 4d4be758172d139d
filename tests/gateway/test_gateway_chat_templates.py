"""Chat templates give what transformers gives, and refuse what they refuse."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gateway.chat import ChatWriter
from gateway.errors import ApiError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "    {%- if loop.index0 > 5 %}{% break %}{% endif %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "    {%- generation %}{{- message['content'] | trim }}{%- endgeneration %}\n"
    "{%- endfor %}\n"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
JSON = "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ tools is none }}{{ documents }}"
CHAT = [
    {"role": "user", "content": " <b>hi</b> & 'you' é🙂 "},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "again\n"},
]
SYSTEM = [{"role": "system", "content": " short "}, *CHAT]


@pytest.mark.parametrize("template", [CHATML, LLAMA, MISTRAL, JSON])
@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("messages", [CHAT, SYSTEM])
def test_like_transformers(template: str, prompted: bool, messages: list[dict[str, str]]) -> None:
    if template is MISTRAL and messages is SYSTEM:
        return
    expected, _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=prompted, **SPECIAL
    )
    assert ChatWriter(template, SPECIAL).write(messages, prompted) == expected[0]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (MISTRAL, "Roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "do not fit"),
        ("{{ messages[0] + 1 }}", "do not fit"),
        ("{{ ''.__class__.__mro__ }}", "do not fit"),
        ("{{ messages.append(1) }}", "do not fit"),
        ("{% for i in range(10**9) %}x{% endfor %}", "do not fit"),
    ],
)
def test_what_a_template_refuses_is_the_clients_mistake(template: str, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        ChatWriter(template, SPECIAL).write(SYSTEM)
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert words in refused.value.message


def test_a_template_that_cannot_be_read() -> None:
    writer = ChatWriter("{% if %}", SPECIAL)
    assert not writer.is_plain
    with pytest.raises(ApiError) as refused:
        writer.write(CHAT)
    assert refused.value.status == 500


def test_a_model_without_one() -> None:
    writer = ChatWriter(None, SPECIAL)
    assert writer.is_plain
    text = writer.write([{"role": "user", "content": "hi"}])
    assert text == "User: hi\n\nAssistant:"
