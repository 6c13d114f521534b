# ruff: noqa: E501
"""The sandbox: what templates may not do, what they may spend, and how they fail."""

import random
import resource
import threading
import time
from datetime import datetime

import pytest
from support.chat_styles import CHATS, STYLES

from openhearth.chat import ChatTemplate, TemplateLimits
from openhearth.errors import TemplateError

MESSAGES = [{"role": "user", "content": "hello"}]


def render(source, limits=None, **variables):
    template = ChatTemplate(source, limits=limits or TemplateLimits(seconds=3, steps=200_000))
    return template.render_text({"messages": MESSAGES, **variables})


def test_message_of_raise_exception_reaches_the_user_first():
    with pytest.raises(TemplateError) as caught:
        render("ok\n{{ raise_exception('Only `user` roles, please') }}")
    assert caught.value.what == "Only `user` roles, please"
    assert "line 2" in caught.value.why


@pytest.mark.parametrize(
    "source,line,reason",
    [
        ("a\n\n{{ messages[0].x.y }}", 3, "UndefinedError"),
        ("a\n{% if %}", 2, "TemplateSyntaxError"),
        ("{% for m in messages %}\n{{ m.content + 1 }}\n{% endfor %}", 2, "TypeError"),
        ("{{ messages | tojson(indent=99) }}", 1, "SecurityError"),
        ("{{ messages | nosuch }}", 1, "No filter named"),
        ("{% include 'x' %}", 1, "no loader"),
        ("{{ 1 / 0 }}", 1, "ZeroDivisionError"),
        ("{% generation %}", 1, "TemplateSyntaxError"),
        ("{{ undefined_thing | tojson }}", 1, "TypeError"),
    ],
)
def test_errors_name_the_line_and_the_reason(source, line, reason):
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert f"line {line}" in caught.value.what and reason in caught.value.why


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__class__.__call__ }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ range.__func__ }}",
    "{{ (namespace(a=1))._Namespace__attrs }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__class__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.mro() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | attr('append') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': 1}) }}",
    "{{ strftime_now.__wrapped__ }}",
    "{{ (1).to_bytes(99999999, 'big') }}",
    "{{ 'a'.encode() }}",
    "{{ 'a'.translate({97: 'b' * 9999}) }}",
    "{{ lipsum() }}",
    "{{ ['a'] | random }}",
    "{{ hearth_clock.now() }}",
    "{{ namespace(_x=1) }}",
    "{% import 'os' as os %}",
    "{{ environment }}{{ context.environment }}",
    "{{ ().__class__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_internals_cannot_be_reached(source):
    try:
        text = render(source)
    except TemplateError:
        return
    assert text in ("", "[Undefined]")


BOMBS = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "times a list": "{% set x = [0] * 10**9 %}",
    "doubling": "{% set s = 'aaaaaaaa' %}" + "{% set s = s + s %}" * 60,
    "doubling ~": "{% set s = 'aaaaaaaa' %}" + "{% set s = s ~ s %}" * 60,
    "doubling blocks": "{% set s = 'aaaaaaaa' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "doubling lists": "{% set s = [1] %}" + "{% set s = s + s %}" * 60,
    "squaring": "{% set s = 12345678901234567890 %}" + "{% set s = s * s %}" * 60,
    "power": "{{ 9 ** (9 ** 9) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "center method": "{{ 'a'.center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**10) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "replace": "{% set s = 'a' * 9999999 %}{{ s | replace('a', s) }}",
    "replace method": "{% set s = 'a' * 9999999 %}{{ s.replace('a', s) }}",
    "join": "{{ range(99999) | join('a' * 99999) }}",
    "join method": "{{ ('a' * 99999).join(('b ' * 99999).split()) }}",
    "indent": "{{ ('\\n' * 99999) | indent(9999) }}",
    "tojson": "{{ (range(99999) | list) | tojson(indent='a' * 9999) }}",
    "batch": "{{ [1] | batch(10**10, 0) | list }}",
    "round": "{{ 1 | round(10**9, 'ceil') }}",
    "sum": "{{ [[1], [2]] | sum(start=[]) }}",
    "percent many": "{{ ('%(a)s' * 99999) % {'a': 'x' * 999999} }}",
    "format many": "{{ ('{0}' * 99999).format('x' * 999999) }}",
    "format filter many": "{{ ('%s' * 2000) | format(*(['x' * 999999] * 2000)) }}",
    "writing a list": "{% set l = ['x' * 999999] * 99999 %}{{ l }}",
    "writing a list in a filter": "{% set l = [] %}{% for i in range(99) %}{% set l = ['x' * 999999] * 200 %}{{ l | upper | length }}{% endfor %}",
    "nested lists": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a | length }}",
    "nested dicts": "{% set a = {} %}" + "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a.items() }}",
    "nested by calls": "{% set a = dict() %}" + "{% set a = dict(x=a, y=a) %}" * 60,
    "nested tuples": "{% set a = (1,) %}" + "{% set a = (a, a) %}" * 60 + "{{ a == a }}",
    "json of one text many times": "{{ (['x' * 999999] * 200) | tojson }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "wide recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "hoarding": "{% set ns = namespace(l=[]) %}{% set s = 'a' * 999999 %}{% for i in range(99999) %}{% set ns.l = ns.l + [s ~ i] %}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep blocks": "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "long search": "{% set s = 'a' * 9999999 %}" + "{% if s ~ 'b' in s %}{% endif %}" * 1500,
    "map": "{% for i in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "source": "x" * (129 << 10),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped_in_time(name):
    start = time.process_time()
    limits = TemplateLimits(seconds=1, steps=100_000, output_chars=4 << 20, total_chars=16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateError):
        render(BOMBS[name], limits)
    assert time.process_time() - start < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_limits_hold_in_other_threads_and_do_not_mix():
    outcomes = []

    def bomb():
        try:
            render(BOMBS["loops"], TemplateLimits(steps=20_000))
        except TemplateError as error:
            outcomes.append(error.what)

    def honest():
        for _ in range(30):
            if render("{% for i in range(500) %}{{ i }}{% endfor %}", TemplateLimits(steps=20_000)):
                outcomes.append("ok")

    threads = [threading.Thread(target=work) for work in (bomb, honest, bomb, honest)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("ok") == 60
    assert sum("takes more than 20000 steps" in what for what in outcomes) == 2


def test_one_template_renders_again_after_it_was_stopped():
    template = ChatTemplate("{% for i in range(n) %}a{% endfor %}", limits=TemplateLimits(steps=100))
    with pytest.raises(TemplateError):
        template.render_text({"n": 1000})
    assert template.render_text({"n": 3}) == "aaa"


def test_long_chats_fit_the_limits():
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * 2000} for i in range(400)]
    for style in ("chatml", "gemma", "qwen3", "llama3"):
        text = ChatTemplate(STYLES[style], special_tokens={"bos_token": "<s>"}).render_text(
            {"messages": chat, "tools": None}
        )
        assert len(text) > 3_900_000


def test_text_with_numbers_is_no_large_format():
    assert render("{{ 'Since 20240101: %s, {100000}' % 'x' }}") == "Since 20240101: x, {100000}"


def test_clock_is_injected_and_defaults_to_now():
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}")
    assert template.render_text({}, now=datetime(2001, 2, 3)) == "2001-02-03"
    assert template.render_text({}) in {datetime.now().strftime("%Y-%m-%d"), time.strftime("%Y-%m-%d")}


TOKENS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "for",
    "in",
    "if",
    "else",
    "elif",
    "endif",
    "endfor",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "generation",
    "endgeneration",
    "filter",
    "endfilter",
    "messages",
    "m",
    "x",
    "ns",
    "loop",
    "namespace(a=1)",
    "ns.a",
    "range(5)",
    "'a'",
    "1",
    "[1, 2]",
    "{'k': 'v'}",
    "|",
    "upper",
    "tojson",
    "join(',')",
    "replace('a', 'b')",
    ".",
    "content",
    "role",
    "[0]",
    "[1:]",
    "+",
    "~",
    "*",
    "==",
    "not",
    "and",
    "is",
    "defined",
    "none",
    "(",
    ")",
    "=",
    ",",
    "\n",
    " ",
    "<|im_start|>",
    "{#",
    "#}",
    "break",
    "continue",
    "recursive",
    "raise_exception('no')",
    "strftime_now('%Y')",
    "**",
    "%",
    "9" * 30,
    "sort",
    "length",
    "items()",
    "dict(a=1)",
    "self",
    "block b",
    "endblock",
    "with",
    "endwith",
    "autoescape true",
    "endautoescape",
    "extends",
    "import 'a' as b",
    "raw",
    "endraw",
    "do",
    "\ud800",
    "\x00",
    "\U0010fffe",
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Jinja's lexer on odd escapes
def test_fuzzed_templates_give_text_or_a_template_error():
    draw, limits = (
        random.Random(6),
        TemplateLimits(seconds=1, steps=5000, output_chars=1 << 20, total_chars=4 << 20),
    )
    num_texts = 0
    for i in range(1200):
        if i % 3 == 0:
            source = " ".join(draw.choice(TOKENS) for _ in range(draw.randint(1, 25)))
        else:
            source = draw.choice(list(STYLES.values()))
            for _ in range(draw.randint(1, 4)):
                a = draw.randrange(len(source) + 1)
                b = min(len(source), a + draw.randint(0, 30))
                source = source[:a] + draw.choice(["", draw.choice(TOKENS), source[a:b] * 2]) + source[b:]
        chat = draw.choice([*CHATS.values(), [], [{}], ["x"], [{"role": None, "content": [1, None]}]])
        try:
            text = ChatTemplate(source, limits=limits).render_text({"messages": chat, "tools": None})
        except TemplateError:
            continue
        assert isinstance(text, str)
        num_texts += 1
    assert num_texts > 150
