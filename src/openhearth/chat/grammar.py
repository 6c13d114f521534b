"""Grammars that an answer must follow: JSON schemas, regular expressions, Lark grammars, over a tokenizer.

Compiled and followed by llguidance: before each token it says which tokens keep the answer inside the
grammar. The end of text is among them exactly where the grammar is complete. Whoever sends a grammar is a
stranger: its size and nesting are bounded here, its automata by llguidance's own counters, and references go
no further than the schema itself.

Does not: shorten an answer that runs into max_tokens; it then ends inside the grammar.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from openhearth.chat.tokenizer import Tokenizer, well_formed
from openhearth.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CHARS = 64 << 10
"""Longest grammar, written as JSON."""

MAX_DEPTH = 64
"""Deepest nesting of a schema."""

WHITESPACE = r"\x20|\n\x20{0,40}"
"""Between JSON's signs: one space, or a line break and its indent. Small models would go on for ever."""

_KEPT = 32
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_OPENING = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "oneOf",
                      "$ref", "if"})
_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False,
            "coerce_one_of": False}


@dataclass(frozen=True)
class GrammarText:
    """A grammar as llguidance reads it: named grammars, the first is the one to follow.

    Example: ``GrammarText('[{"json_schema": {"type": "object"}}]')``.
    """

    grammars: str


def schema_grammar(schema: Mapping[str, Any] | bool) -> GrammarText:
    """Return the grammar of JSON that a schema describes. Raises: UsageError over a limit."""
    if isinstance(schema, Mapping) and "x-guidance" in schema:
        raise UsageError("the schema has `x-guidance`", why="how JSON is written is not up to the request")
    return _one("schema", {"json_schema": with_options(schema)})


def regex_grammar(pattern: str) -> GrammarText:
    """Return the grammar of texts that a regular expression matches as a whole. Raises: UsageError."""
    import llguidance

    wrapped = json.loads(llguidance.LLMatcher.grammar_from_regex(well_formed(pattern)))
    return _one("regular expression", wrapped["grammars"][0])


def lark_grammar(text: str) -> GrammarText:
    """Return a grammar in llguidance's variant of Lark. Raises: UsageError over a limit."""
    return lark_text("grammar", text)


def choice_grammar(choices: Sequence[str]) -> GrammarText:
    """Return the grammar of one of some texts. Raises: UsageError over a limit."""
    return lark_grammar("start: " + " | ".join(quoted(choice) for choice in choices))


def lark_text(kind: str, text: str) -> GrammarText:
    """Return a Lark grammar; kind: what an error calls it. Raises: UsageError over a limit."""
    return _one(kind, {"lark_grammar": text})


def after_thought(grammar: GrammarText, opened: str, closed: str, tokenizer: Tokenizer, *,
                  is_inside: bool) -> GrammarText:
    """Return a grammar that begins after a thought. is_inside: the thought has begun; else it may.

    The thought itself is any text; the answer cannot end in it.
    """
    lines = ["start: thought SPACE answer" if is_inside else "start: (opened thought SPACE)? answer",
             r"SPACE: /[\x20\n]{0,8}/", f"opened: {mark(tokenizer, opened)}"]
    if closed in tokenizer.control_tokens:
        lines.append(f"thought: /(?s:.*)/ {mark(tokenizer, closed)}")
    else:
        lines.append(f"thought[lazy]: /(?s:.*)/ {quoted(closed)}")
    return either("grammar", "\n".join(lines), grammar)


def either(kind: str, text: str, answer: GrammarText) -> GrammarText:
    """Return a Lark grammar in which `answer` is another grammar. Raises: UsageError over a limit."""
    first, *others = json.loads(answer.grammars)
    outer = json.loads(lark_text(kind, f"{text}\nanswer: @answer{len(others)}").grammars)
    return GrammarText(json.dumps([*outer, {**first, "name": f"answer{len(others)}"}, *others]))


def mark(tokenizer: Tokenizer, text: str) -> str:
    """Return a text as a grammar writes it; a control token can come out as nothing but itself."""
    token_id = tokenizer.control_tokens.get(text)
    return quoted(text) if token_id is None else f"<[{token_id}]>"


def quoted(text: str) -> str:
    """Return a text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def with_options(schema: Mapping[str, Any] | bool) -> Any:
    """Return a schema that says how its JSON is written, without properties that it does not name."""
    if not isinstance(schema, Mapping):
        return schema
    check_depth("schema", schema)
    return {**_closed(schema, is_mixed='"allOf"' in json.dumps(schema)), "x-guidance": _OPTIONS}


def _closed(schema: Any, *, is_mixed: bool) -> Any:
    """Return a schema whose objects have the properties that they name, where it leaves that open.

    Small models would invent others for ever. Every answer still is one of the schema. is_mixed: schemas are
    put together (`allOf`), where a closed one would leave nothing.
    """
    if not isinstance(schema, Mapping) or is_mixed:
        return schema
    closed = {key: _inner(key, value) for key, value in schema.items()}
    if "properties" in schema and not _OPENING.intersection(schema):
        closed["additionalProperties"] = False
    return closed


def _inner(key: str, value: Any) -> Any:
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _closed(one, is_mixed=False) for name, one in value.items()}
    if key in _LISTED and isinstance(value, list):
        return [_closed(one, is_mixed=False) for one in value]
    return _closed(value, is_mixed=False) if key in ("items", "additionalProperties") else value


def _one(kind: str, grammar: Any) -> GrammarText:
    check_depth(kind, grammar)
    text = json.dumps([grammar])
    if len(text) > MAX_CHARS:
        raise UsageError(f"the {kind} has {len(text)} characters", why=f"the limit is {MAX_CHARS}")
    return GrammarText(text)


def check_depth(kind: str, value: Any) -> None:
    """Refuse a value that is nested too deeply. Raises: UsageError."""
    level = [value]
    for _ in range(MAX_DEPTH + 2):
        level = [inner for outer in level if isinstance(outer, dict | list)
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return
    raise UsageError(f"the {kind} is nested deeper than {MAX_DEPTH}", hint="a flatter one")


class Grammar:
    """A compiled grammar; any number of answers may follow it at once.

    They share its automaton, whose states are counted: once it is full, a new one takes its place.
    Example: ``follower = grammar.follow(); follower.allowed(())[0] & 1`` is whether token 0 may come first.
    """

    def __init__(self, build: Callable[[], LLMatcher]) -> None:
        self._build = build
        self._matcher = build()

    def follow(self) -> Follower:
        """Return the state of one answer that begins."""
        return Follower(self)

    def matcher(self) -> LLMatcher:
        """Return a matcher of nothing yet, over the automaton of the others."""
        return self._matcher.deep_copy()

    def renewed(self) -> LLMatcher:
        """Return a matcher of nothing yet, over an automaton without states that later ones share."""
        self._matcher = self._build()
        return self.matcher()


class Follower:
    """How far one answer has come in its grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher()
        self._num_taken = 0

    def allowed(self, token_ids: Sequence[int]) -> bytes:
        """Return the tokens that may follow, one bit each, the lowest bit first.

        token_ids: the whole answer so far, which goes on from that of the last call. Raises: UsageError when
        it left the grammar, or the grammar takes too long.
        """
        bits = _mask(self._matcher, token_ids[self._num_taken:])
        if bits is None:  # perhaps other answers filled the automaton
            self._matcher = self._grammar.renewed()
            bits = _mask(self._matcher, token_ids)
        if bits is None:
            raise UsageError("the grammar cannot be followed any further", why=_reason(self._matcher))
        self._num_taken = len(token_ids)
        return bits


def _mask(matcher: LLMatcher, token_ids: Sequence[int]) -> bytes | None:
    """Return what may follow some more tokens; None if the matcher gives up."""
    matcher.consume_tokens(list(token_ids))
    bits = b"" if matcher.is_error() else matcher.compute_bitmask()
    return None if matcher.is_error() else bits


class Grammars:
    """Compiles grammars for one tokenizer, one at a time, and keeps those used last.

    May be used from many threads. Example:
    ``Grammars(tokenizer).compile(schema_grammar({"type": "object"}))``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._vocabulary: LLTokenizer | None = None

    def compile(self, text: GrammarText) -> Grammar:
        """Return a grammar that can be followed.

        Raises: UsageError for a grammar that is none, says what is not supported, or is too large;
        Unsupported for a tokenizer whose tokens have no bytes of their own, or no end of text.
        """
        with self._lock:
            found = self._kept.pop(text.grammars, None)
            if found is None:
                found = self._compile(text)
            self._kept[text.grammars] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _compile(self, text: GrammarText) -> Grammar:
        import llguidance

        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer)
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=20_000,
            max_lexer_states=20_000, max_grammar_size=100_000, verbose_errors=False)
        grammar = Grammar(partial(llguidance.LLMatcher, self._vocabulary,
                                  json.dumps({"grammars": json.loads(text.grammars)}),
                                  limits=limits, log_level=0))
        first = grammar.matcher()
        if _mask(first, ()) is None:  # the first step finds what the compiler lets through
            raise UsageError("the grammar cannot be followed", why=_reason(first))
        return grammar


def _reason(matcher: LLMatcher) -> str:
    lines = [line for line in matcher.get_error().splitlines() if line.strip() and "non-verbose" not in line]
    return "\n".join(line[:200] for line in lines[:4])


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """Return the tokens as llguidance reads them. Raises: Unsupported."""
    import llguidance

    if not tokenizer.has_token_bytes or not tokenizer.stop_token_ids:
        raise Unsupported("answers of this model cannot be made to follow a grammar",
                          why="its tokens stand for no bytes of their own, or none ends a text")
    stop_token_ids = sorted(tokenizer.stop_token_ids)
    wrapped = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, stop_token_ids[0]))
    return llguidance.LLTokenizer(wrapped, eos_token=stop_token_ids)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = [tokenizer.token_bytes(token_id, skip_special=False)
                       for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_tokens.values())
        self._encode: Callable[[str], list[int]] = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)
