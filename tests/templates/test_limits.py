"""A hostile template can neither read files, nor hang, nor exhaust memory: each try ends soon, with a name."""

from __future__ import annotations

import resource
import time
from datetime import datetime
from typing import Any

import pytest

from sftprep.errors import TemplateError, TemplateLimitError
from sftprep.templates import limits
from sftprep.templates.template import ChatTemplate, Request

MESSAGES = [{"role": "user", "content": "a\tb\nc" * 20}]
BIG = "{% set b = namespace(x='x' * 1000000) %}"
NESTED = (
    "{% set n = namespace(x=[1], y=[1]) %}"
    "{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
)


def compiled(text: str) -> ChatTemplate:
    return ChatTemplate(text, special_tokens={}, stop_tokens=["</s>"], now=datetime(2026, 1, 2))


ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros that call two": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "filters in a loop": "{% for a in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "a comparison of lists that hold themselves": NESTED + "{{ n.x == n.y }}",
    "a key that holds itself": NESTED.replace("[", "(").replace("]", ",)").replace("(n.x, n.x,)", "(n.x, n.x)")
    + "{{ {n.x: 1}|length }}",
    "equal elements": NESTED + "{{ [n.x, n.y]|unique|list|length }}",
}
ENORMOUS = {
    "a product": "{{ 'x' * 10000000000 }}",
    "a list": "{{ ([1] * 10000000000)|length }}",
    "a power": "{{ 2 ** 10000000000 }}",
    "a product of numbers": "{% set n = namespace(x=9) %}{% for i in range(64) %}{% set n.x = n.x*n.x %}{% endfor %}",
    "sums": "{% set n = namespace(x='xx') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "tildes": "{% set n = namespace(x='xx') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "blocks": "{% set n = namespace(x='xx') %}{% for i in range(64) %}"
    "{% set b %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = b %}{% endfor %}",
    "output": BIG + "{% for i in range(99999) %}{{ b.x }}{% endfor %}",
    "center": "{{ 'x'|center(10000000000) }}",
    "a method's width": "{{ 'x'.ljust(10000000000) }}",
    "tabs": BIG + "{{ b.x.replace('x', '\t').expandtabs(1000000) }}",
    "an indent": BIG + "{{ b.x.replace('x', '\n')|indent(1000000) }}",
    "json's indent": "{{ messages|tojson(indent=10000000000) }}",
    "a percent's width": "{{ '%10000000000d' % 1 }}",
    "a percent's star": "{{ '%*d' % (10000000000, 1) }}",
    "the format filter": "{{ '%10000000000d'|format(1) }}",
    "a format's width": "{{ '{:10000000000}'.format(1) }}",
    "a format's inner width": "{{ '{:{}}'.format(1, 10000000000) }}",
    "replace": BIG + "{{ b.x.replace('x', b.x) }}",
    "the replace filter": BIG + "{{ b.x|replace('x', b.x) }}",
    "join": BIG + "{{ b.x.join(b.x) }}",
    "the join filter": BIG + "{{ b.x|join(b.x) }}",
    "a joined list": BIG + "{{ ([b.x] * 100000)|join }}",
    "a printed list": BIG + "{{ [b.x] * 100000 }}",
    "a printed list that holds itself": NESTED + "{{ n.x }}",
    "json of a list that holds itself": NESTED + "{{ n.x|tojson }}",
    "a batch": "{{ messages|batch(10000000000, 'x')|list|length }}",
    "lipsum": "{{ lipsum(n=10000000) }}",
    "translate": "{{ messages[0].content.translate({97: 'x' * 1000000}) }}",
    "characters": BIG + "{{ b.x|list|length }}",
}
FILES = {
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as p %}{{ p }}",
    "extends": "{% extends '/etc/passwd' %}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "code": "{{ raise_exception.__code__.co_filename }}",
    "subclasses": "{{ ().__class__.__base__.__subclasses__() }}",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 1.0)


@pytest.mark.parametrize("attack", [*ENDLESS, *ENORMOUS])
@pytest.mark.parametrize("traced", [False, True])
def test_a_template_without_bounds_is_refused_before_it_hangs_or_fills_the_memory(attack: str, traced: bool) -> None:
    template = compiled({**ENDLESS, **ENORMOUS}[attack])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises((TemplateError, TemplateLimitError)) as caught:
        (template.trace if traced else template.render)(MESSAGES, Request(), prompt=False)
    assert caught.value.code in {"template-limit", "template-raised"}
    assert caught.value.code == "template-limit" or attack in {"lipsum", "translate"}
    assert time.thread_time() - started < 5, "it ended soon"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "it took less than a GiB"


@pytest.mark.parametrize("attack", FILES)
def test_a_template_reads_no_file_and_sees_no_python(attack: str) -> None:
    template = compiled(FILES[attack])
    for run in (template.render, template.trace):
        with pytest.raises(TemplateError) as caught:
            run(MESSAGES, Request(), prompt=False)
        assert caught.value.code == "template-raised"


@pytest.mark.parametrize("text", ["{{ " + "(" * 100_000 + " }}", "{{ 1" + "+1" * 100_000 + " }}", "{% if x %}" * 5000])
def test_a_template_that_is_nested_too_deeply_does_not_compile(text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compiled(text)
    assert caught.value.code == "template-syntax"


def test_a_large_conversation_may_take_what_it_needs() -> None:
    text: Any = "{% for m in messages %}{{ m.content|trim }}{% set x = m.content|tojson %}{{ x|length }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 10_000_000}]
    assert len(compiled(text).render(messages, Request(), prompt=False)) > 10_000_000
