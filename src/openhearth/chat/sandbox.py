"""The environment chat templates run in: Jinja's immutable sandbox, with the limits of `budget.py`.

On top of Jinja's own sandbox: methods of plain values are an allow-list, so are filters; anything
that can make a long value is checked before it runs; `random`, `lipsum` and loading of other
templates are not there. Semantics follow transformers 5.23.0, `utils/chat_template_utils.py`.

Does not: interrupt one single operation, see `budget.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from openhearth.chat.budget import TemplateLimits, current_budget, size_of
from openhearth.chat.operations import (
    FILTER_CHECKS,
    check_format,
    check_power,
    check_product,
    checked_method,
    text_of,
)

GENERATION_START, GENERATION_END = "hearth_generation_start", "hearth_generation_end"
"""Variables that hold the marks around `{% generation %}` output; set for every rendering."""

CLOCK = "hearth_clock"
"""Variable that holds the time for `strftime_now`."""

CUT_MARK = "hearth_cut_mark"
"""Variable that holds the character `render.py` puts into user text."""

_TEXT_METHODS = (
    "capitalize casefold center count endswith expandtabs find format index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust "
    "lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit "
    "rstrip split splitlines startswith strip swapcase title upper zfill"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values", "copy"}),
    list: frozenset({"index", "count", "copy"}),
    tuple: frozenset({"index", "count"}),
    int: frozenset(),
    float: frozenset({"is_integer"}),
    type(None): frozenset(),
}
_FILTERS = (
    "abs batch capitalize center count d default dictsort e escape first float format groupby indent "
    "int items join last length list lower map max min reject rejectattr replace reverse round safe "
    "select selectattr slice sort string sum title trim truncate unique upper wordcount"
)


_WRITERS = "capitalize center e escape indent lower safe string title trim truncate upper wordcount"


class _GenerationTag(ext.Extension):
    """`{% generation %}...{% endgeneration %}`: its output is put between two marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(
            [_mark(GENERATION_START, lineno), *body, _mark(GENERATION_END, lineno)], lineno=lineno
        )


def _mark(name: str, lineno: int) -> nodes.Output:
    call = _call("variable", [nodes.ContextReference(), nodes.Const(name)], lineno)
    return nodes.Output([call], lineno=lineno)


def _meter(node: nodes.Node) -> None:
    """Rewrite a parsed template in place so that loops, `~` and comparisons are charged."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _meter(item)
                    value[i] = _metered(item)
        elif isinstance(value, nodes.Node):
            _meter(value)
            setattr(node, name, _metered(value))
    if isinstance(node, nodes.For):
        node.body.insert(0, nodes.ExprStmt(_call("count_step", [], node.lineno), lineno=node.lineno))


def _metered(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.Concat):
        return _call("concat_values", node.nodes, node.lineno)
    if isinstance(node, nodes.Compare):
        node.expr = _call("counted", [node.expr], node.lineno)
    if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _call("charged", [node], node.lineno)
    return node


def _call(name: str, args: list[nodes.Expr], lineno: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=lineno)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_namespace_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_namespace_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_namespace_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; everything it does is charged to `current_budget`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, limits: TemplateLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            cache_size=0,
            extensions=[_GenerationTag, ext.loopcontrols],
            finalize=_charged_text,
        )
        self.limits = limits
        self.filters = {name: _counted_filter(name, self.filters[name]) for name in _FILTERS.split()}
        self.filters["tojson"] = _counted_filter("tojson", _tojson)
        self.tests = {name: _counted_filter(name, test) for name, test in self.tests.items()}
        self.globals = {
            "range": self._range,
            "dict": _Dict(),
            "namespace": _Namespace,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _meter(template)
        return template

    def prepare(self, source: str) -> tuple[jinja2.Template, frozenset[str]]:
        """Return a compiled template and the text constants in its expressions.

        Raises: what Jinja and Python raise for a broken or deeply nested source.
        """
        parsed = self.parse(source)
        constants = (node.value for node in parsed.find_all(nodes.Const))
        texts = frozenset(value for value in constants if isinstance(value, str))
        return jinja2.Template.from_code(self, self.compile(parsed), self.make_globals(None)), texts

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow listed methods of plain values, and what Jinja's sandbox allows of its own objects."""
        allowed = next((_METHODS[kind] for kind in type(obj).__mro__ if kind in _METHODS), None)
        if allowed is not None:
            return attr in allowed
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Charge one step, then as Jinja."""
        current_budget().step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Charge one step and the item, then as Jinja."""
        current_budget().step()
        value = super().getitem(obj, argument)
        if isinstance(argument, slice):
            current_budget().charge_value(value)
        return value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As Jinja, for formats whose widths are small."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, "{", (args, kwargs))
            return wrapped(*args, **kwargs)

        return checked

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Check and charge a call of a method, macro or function."""
        budget = current_budget()
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = checked_method(owner, __obj.__name__, args, kwargs)
        value = super().call(__context, __obj, *args, **kwargs)
        budget.charge_value(value)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check the size of the result, then as Jinja."""
        budget = current_budget()
        budget.step()
        if operator == "%" and isinstance(left, str):
            check_format(left, "%", right)
        elif operator == "*":
            check_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "+":
            budget.charge(size_of(left) + size_of(right))
        value = super().call_binop(context, operator, left, right)
        if operator in "+%":
            budget.charge_value(value)
        return value

    def count_step(self) -> None:
        """Charge one iteration of a loop."""
        current_budget().step()

    def counted(self, value: Any) -> Any:
        """Charge one step and return value."""
        current_budget().step()
        return value

    def charged(self, value: Any) -> Any:
        """Charge a list, tuple or dictionary that the template writes out."""
        current_budget().charge_value(value)
        return value

    def concat_values(self, *values: Any) -> str:
        """`~`: join the values as text."""
        texts = [text_of(value) for value in values]
        current_budget().charge(sum(map(len, texts)))
        return "".join(texts)

    def variable(self, context: Any, name: str) -> str:
        """Return a variable of the rendering that the template cannot set."""
        return context.parent.get(name, "")

    def _range(self, *args: int) -> range:
        items = range(*args)
        limit = self.limits.range_length
        if len(items) > limit:
            raise SecurityError(f"range of {len(items)} items, the limit is {limit}")
        return items


def _charged_text(value: Any) -> str:
    budget = current_budget()
    budget.step()
    text = text_of(value)
    budget.charge(len(text))
    return text


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter or test with its cost charged; markers of Jinja (pass_context...) are kept."""
    num_passed = int(hasattr(function, "jinja_pass_arg"))
    check = FILTER_CHECKS.get(name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        budget.step()
        if check is not None:
            args = (*args[:num_passed], *check(*args[num_passed:], **kwargs))
        if name in _WRITERS.split():
            budget.charge_text(*args[num_passed:])
        value = function(*args, **kwargs)
        budget.charge_value(value)
        return value

    if num_passed:
        counted.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return counted


@jinja2.pass_context
def _tojson(
    context: Any,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON: no HTML escapes, order of keys kept."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 32:
        raise SecurityError("an indentation of more than 32 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces = []
    for piece in encoder.iterencode(value):
        current_budget().charge(len(piece))
        pieces.append(piece)
    text = "".join(pieces)
    mark = context.parent.get(CUT_MARK)
    if mark and ensure_ascii:
        escaped = re.escape(json.dumps(mark)[1:-1])
        text = re.sub(rf"(?<!\\)((?:\\\\)*){escaped}", rf"\g<1>{mark}", text)
    return text


def _raise_exception(message: Any = "") -> None:
    raise jinja2.TemplateError(text_of(message))


@jinja2.pass_context
def _strftime_now(context: Any, format: str) -> str:
    if len(format) > 256:
        raise SecurityError("a date format of more than 256 characters")
    clock: datetime | None = context.parent.get(CLOCK)
    return (clock or datetime.now()).strftime(format)
