"""The environment chat templates run in: Jinja's immutable sandbox, with the limits of `budget.py`.

On top of Jinja's own sandbox: methods of plain values are an allow-list, so are filters; anything
that can make a long value is checked before it runs; `random`, `lipsum` and loading of other
templates are not there. Semantics follow transformers 5.23.0, `utils/chat_template_utils.py`.

Does not: interrupt one single operation, see `budget.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from openhearth.chat.budget import TemplateLimits, current_budget, size_of

GENERATION_START, GENERATION_END = "hearth_generation_start", "hearth_generation_end"
"""Variables that hold the marks around `{% generation %}` output; set for every rendering."""

CLOCK = "hearth_clock"
"""Variable that holds the time for `strftime_now`."""

CUT_MARK = "hearth_cut_mark"
"""Variable that holds the character `render.py` puts into user text."""

_MAX_WIDTH = 10_000
_MAX_INT_BITS = 4096

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({"capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format",
                    "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower",
                    "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower",
                    "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
                    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
                    "swapcase", "title", "upper", "zfill"}),
    dict: frozenset({"get", "items", "keys", "values", "copy"}),
    list: frozenset({"index", "count", "copy"}),
    tuple: frozenset({"index", "count"}),
    int: frozenset(), bool: frozenset(), float: frozenset({"is_integer"}), type(None): frozenset(),
}
_FILTERS = ("abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
            "float", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map",
            "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
            "slice", "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount")


class _GenerationTag(ext.Extension):
    """`{% generation %}...{% endgeneration %}`: its output is put between two marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope([_mark(GENERATION_START, lineno), *body, _mark(GENERATION_END, lineno)], lineno=lineno)


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
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, cache_size=0,
                         extensions=[_GenerationTag, ext.loopcontrols], finalize=_charged_text)
        self.limits = limits
        self.filters = {name: _counted_filter(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = _counted_filter("tojson", _tojson)
        self.tests = {name: _counted_filter(name, test) for name, test in self.tests.items()}
        self.globals = {"range": self._range, "dict": _Dict(), "namespace": _Namespace,
                        "cycler": self.globals["cycler"], "joiner": self.globals["joiner"],
                        "raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _meter(template)
        return template

    def constants(self, source: str) -> frozenset[str]:
        """Return the text constants in the expressions of a template. Raises: jinja2.TemplateSyntaxError."""
        return frozenset(node.value for node in self.parse(source).find_all(nodes.Const)
                         if isinstance(node.value, str))

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
            current_budget().charge(size_of(value))
        return value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As Jinja, for formats whose widths are small."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Check and charge a call of a method, macro or function."""
        budget = current_budget()
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = _checked_method(owner, __obj.__name__, args, kwargs)
        value = super().call(__context, __obj, *args, **kwargs)
        budget.charge(size_of(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Check the size of the result, then as Jinja."""
        budget = current_budget()
        budget.step()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "+":
            budget.charge(size_of(left) + size_of(right))
        value = super().call_binop(context, operator, left, right)
        budget.charge(size_of(value) if operator == "%" else 0)
        return value

    def count_step(self) -> None:
        """Charge one iteration of a loop."""
        current_budget().step()

    def counted(self, value: Any) -> Any:
        """Charge one step and return value."""
        current_budget().step()
        return value

    def concat_values(self, *values: Any) -> str:
        """`~`: join the values as text."""
        texts = [_text(value) for value in values]
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


def _text(value: Any) -> str:
    text = str(value)
    return text if type(text) is str else str.__str__(text)


def _charged_text(value: Any) -> str:
    budget = current_budget()
    budget.step()
    text = _text(value)
    budget.charge(len(text))
    return text


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter or test with its cost charged; markers of Jinja (pass_context...) are kept."""
    num_passed = int(hasattr(function, "jinja_pass_arg"))
    check = _FILTER_CHECKS.get(name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        budget.step()
        if check is not None:
            args = (*args[:num_passed], *check(*args[num_passed:], **kwargs))
        value = function(*args, **kwargs)
        budget.charge(size_of(value))
        return value

    if num_passed:
        counted.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return counted


def _check_filter_width(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    width = kwargs.get("width", args[0] if args else 0)
    width = len(width) if isinstance(width, str) else width
    _bound("width", width)
    current_budget().charge((_text(value).count("\n") + 1) * width)
    return (value, *args)


def _check_filter_number(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    for given in (*args, *kwargs.values()):
        if isinstance(given, int):
            _bound("a number", given)
    return (value, *args)


def _check_filter_round(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    for given in (*args, *kwargs.values()):
        if isinstance(given, int) and abs(given) > 20:
            raise SecurityError(f"rounding to {given} digits")
    return (value, *args)


def _check_filter_replace(value: Any, old: Any, new: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    text, old, new = _text(value), _text(old), _text(new)
    _charge_replace(text, old, new)
    return (text, old, new, *args)


def _check_filter_join(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    items = list(value)
    separator = _text(kwargs.get("d", args[0] if args else ""))
    if "attribute" not in kwargs and len(args) < 2:
        items = [_text(item) for item in items]
    current_budget().charge(sum(map(size_of, items)) + len(separator) * len(items))
    return (items, *args)


def _check_filter_sum(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    if not isinstance(kwargs.get("start", args[1] if len(args) > 1 else 0), int | float):
        raise SecurityError("sum starts from a number")
    return (value, *args)


def _check_filter_format(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    _check_format(_text(value))
    return (_text(value), *args)


_FILTER_CHECKS: Mapping[str, Callable[..., tuple[Any, ...]]] = {
    "center": _check_filter_width, "indent": _check_filter_width, "batch": _check_filter_number,
    "slice": _check_filter_number, "truncate": _check_filter_number, "round": _check_filter_round,
    "replace": _check_filter_replace, "join": _check_filter_join, "sum": _check_filter_sum,
    "format": _check_filter_format,
}


def _checked_method(owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Check a method call of a text before it runs; returns the arguments to use."""
    if name in ("center", "ljust", "rjust", "zfill"):
        _bound("width", *args[:1])
    elif name == "expandtabs":
        size = kwargs.get("tabsize", args[0] if args else 8)
        _bound("tab size", size)
        current_budget().charge(len(owner) + owner.count("\t") * size)
    elif name == "replace" and len(args) >= 2:
        _charge_replace(owner, *args[:2])
    elif name == "join" and args:
        items = list(args[0])
        current_budget().charge(sum(map(size_of, items)) + len(owner) * len(items))
        return (items,)
    return args


def _charge_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        current_budget().charge(len(text) + text.count(old) * len(new))


_PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d*|\*)(?:\.(\d*|\*))?")
_BRACE_SPEC = re.compile(r"\{[^{}]*:([^{}]*)(\{?)")


def _check_format(text: str) -> None:
    numbers = [number for match in _PERCENT_WIDTH.finditer(text) for number in match.groups() if number]
    for spec, nested in _BRACE_SPEC.findall(text):
        numbers += ["*"] if nested else re.findall(r"\d+", spec)
    for number in numbers:
        if number == "*" or len(number) > 5 or int(number) > _MAX_WIDTH:
            raise SecurityError("a format with a large or computed width")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INT_BITS:
            raise SecurityError(f"a product of more than {_MAX_INT_BITS} bits")
    elif isinstance(left, int) or isinstance(right, int):
        number, value = (left, right) if isinstance(left, int) else (right, left)
        current_budget().charge(max(0, number) * size_of(value))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(0, right) > _MAX_INT_BITS:
        raise SecurityError(f"a power of more than {_MAX_INT_BITS} bits")


def _bound(what: str, number: Any = 0) -> None:
    if not isinstance(number, int) or abs(number) > _MAX_WIDTH:
        raise SecurityError(f"{what} of {number!r}, the limit is {_MAX_WIDTH}"[:200])


@jinja2.pass_context
def _tojson(context: Any, value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
            separators: Any = None, sort_keys: bool = False) -> str:
    """Return plain JSON: no HTML escapes, order of keys kept."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 32:
        raise SecurityError("an indentation of more than 32 characters")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    mark = context.parent.get(CUT_MARK)
    if mark and ensure_ascii:
        escaped = re.escape(json.dumps(mark)[1:-1])
        text = re.sub(rf"(?<!\\)((?:\\\\)*){escaped}", rf"\g<1>{mark}", text)
    return text


def _raise_exception(message: Any = "") -> None:
    raise jinja2.TemplateError(_text(message))


@jinja2.pass_context
def _strftime_now(context: Any, format: str) -> str:
    if len(format) > 256:
        raise SecurityError("a date format of more than 256 characters")
    clock: datetime | None = context.parent.get(CLOCK)
    return (clock or datetime.now()).strftime(format)
