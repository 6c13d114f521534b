"""Grammars over a tokenizer: what may follow, where an answer may end, and what is refused."""

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from openhearth import chat
from openhearth.chat.grammar import MAX_CHARS
from openhearth.chat.tokenizer import Marks, Tokenizer
from openhearth.errors import Unsupported, UsageError

PERSON = {"type": "object",
          "properties": {"name": {"type": "string", "maxLength": 12},
                         "age": {"type": "integer", "minimum": 0, "maximum": 150},
                         "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
          "required": ["name", "age", "tags"], "additionalProperties": False}


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    backend = AutoTokenizer.from_pretrained(tiny_folder).backend_tokenizer
    return Tokenizer(backend, Marks(eos_token_id=2, stop_token_ids=frozenset({2})))


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return chat.Grammars(tokenizer)


def allowed(follower, token_ids):
    bits = np.unpackbits(np.frombuffer(follower.allowed(token_ids), np.uint8), bitorder="little")
    return np.nonzero(bits)[0].tolist()


def walk(grammar, rng, most=400):
    """Draw an answer from what is allowed, the end of text where it may come."""
    follower, token_ids = grammar.follow(), []
    while len(token_ids) < most:
        token_ids.append(int(rng.choice(allowed(follower, token_ids))))
        if token_ids[-1] == 2:
            return token_ids
    return None


def test_what_is_drawn_is_json_of_the_schema(grammars, tokenizer):
    grammar = grammars.compile(chat.schema_grammar(PERSON))
    found = [walk(grammar, np.random.default_rng(seed)) for seed in range(30)]
    assert sum(one is not None for one in found) >= 20
    for token_ids in filter(None, found):
        jsonschema.validate(json.loads(tokenizer.decode(token_ids)), PERSON)


# The parser wants DEL written as an escape, which JSON does not.
TEXT = st.characters(exclude_characters="\x7f", exclude_categories=["Cs"])


@settings(max_examples=60, deadline=None)
@given(value=st.fixed_dictionaries({"name": st.text(TEXT, max_size=12), "age": st.integers(0, 150),
                                    "tags": st.lists(st.sampled_from(["a", "b"]), max_size=3)}),
       indent=st.sampled_from([None, 0, 2, 4]))
def test_every_value_of_the_schema_may_be_written(grammars, tokenizer, value, indent):
    follower = grammars.compile(chat.schema_grammar(PERSON)).follow()
    value = {key: value[key] for key in PERSON["properties"]}  # in the schema's order
    token_ids = tokenizer.encode(json.dumps(value, indent=indent, ensure_ascii=False))
    for place, token_id in enumerate(token_ids):
        may = allowed(follower, token_ids[:place])
        assert token_id in may, tokenizer.decode(token_ids[:place + 1])
        assert 2 not in may
    assert allowed(follower, token_ids) == [2]


@pytest.mark.parametrize("grammar,good,bad", [
    (chat.schema_grammar({"type": "object"}), ['{}', '{"a": [1, {"b": null}]}'], ['[1]', '{"a"}', '{} ']),
    (chat.regex_grammar(r"[a-c]{2,4}\d+"), ["ab12", "abca0"], ["a1", "abcd1", "ab"]),
    (chat.lark_grammar('start: "yes" | "no" /!+/'), ["yes", "no!!"], ["maybe", "yes!", "no"]),
    (chat.choice_grammar(["one", 'say "two"\n', "\u4e09"]), ["one", 'say "two"\n', "\u4e09"], ["on", "two"]),
])
def test_a_text_may_end_exactly_where_its_grammar_does(grammars, tokenizer, grammar, good, bad):
    compiled = grammars.compile(grammar)
    for text, is_good in [(text, True) for text in good] + [(text, False) for text in bad]:
        follower, token_ids = compiled.follow(), tokenizer.encode(text)
        fits = all(token_id in allowed(follower, token_ids[:place])
                   for place, token_id in enumerate(token_ids))
        assert (fits and 2 in allowed(follower, token_ids)) is is_good, text


def test_no_control_token_is_text(grammars, tokenizer):
    follower = grammars.compile(chat.regex_grammar(r"(?s:.*)")).follow()
    may = allowed(follower, ())
    control = set(tokenizer.control_tokens.values())
    assert control & set(may) == {2}
    plain = {token_id for token_id in range(tokenizer.vocab_size)
             if tokenizer.token_bytes(token_id).isascii() and token_id not in control}
    assert plain <= set(may) and len(plain) > 150


def test_the_same_answer_may_be_asked_again_and_others_do_not_matter(grammars, tokenizer):
    grammar = grammars.compile(chat.schema_grammar(PERSON))
    token_ids = tokenizer.encode('{"name": "x", "age"')
    one, other = grammar.follow(), grammar.follow()
    first = one.allowed(token_ids)
    assert one.allowed(token_ids) == first
    for place in range(len(token_ids) + 1):
        stepwise = other.allowed(token_ids[:place])
    assert stepwise == first


def test_objects_have_the_properties_that_they_name_unless_a_schema_says_otherwise(grammars, tokenizer):
    inner = {"type": "object", "properties": {"b": {"const": {"properties": {}}}}, "required": ["b"]}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/inner"}}, "$defs": {"inner": inner}}
    opened = {**schema, "additionalProperties": {"type": "integer"}}
    mixed = {"allOf": [{"type": "object", "properties": {name: {"type": "integer"}}} for name in "ac"]}
    value = '{"a": {"b": {"properties": {}}}'
    cases = [(schema, value + "}", True), (schema, value + ', "c": 1}', False), (schema, "{}", True),
             (schema, '{"a": {"b": {"properties": {}}, "c": 1}}', False), (opened, value + ', "c": 1}', True),
             (mixed, '{"a": 1, "c": 1}', True)]
    for one, text, is_good in cases:
        follower, token_ids = grammars.compile(chat.schema_grammar(one)).follow(), tokenizer.encode(text)
        fits = all(token_id in allowed(follower, token_ids[:place])
                   for place, token_id in enumerate(token_ids))
        assert fits is is_good, (one, text)


def test_an_answer_that_left_its_grammar_is_an_error(grammars, tokenizer):
    follower = grammars.compile(chat.schema_grammar(PERSON)).follow()
    with pytest.raises(UsageError, match="cannot be followed any further"):
        follower.allowed(tokenizer.encode("[1"))


def nested(depth):
    schema = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BOMBS = {
    "far reference": ({"$ref": "https://example.com/schema.json"}, "not present in a registry"),
    "file reference": ({"$ref": "file:///etc/passwd"}, "not present in a registry"),
    "unsupported": ({"not": {"type": "string"}}, "Unimplemented keys"),
    "unknown type": ({"type": "strin"}, "Invalid type"),
    "never": ({"$ref": "#"}, "cannot be followed"),
    "nothing": (False, "Unsatisfiable"),
    "product": ({"allOf": [{"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {"type": "string"}}}
                                      for j in range(8)]} for i in range(8)]}, "too large"),
    "look ahead": ({"type": "string", "pattern": "^(?=a).*$"}, "look-around"),
    "guidance": ({"type": "object", "x-guidance": {"lenient": True}}, "x-guidance"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_schema_that_cannot_be_followed_is_refused_at_once(grammars, name):
    schema, message = BOMBS[name]
    with pytest.raises(UsageError) as caught:
        grammars.compile(chat.schema_grammar(schema))
    assert message in str(caught.value)


def test_size_and_depth_are_bounded_before_anything_is_compiled():
    with pytest.raises(UsageError, match="nested deeper than 64"):
        chat.schema_grammar(nested(65))
    with pytest.raises(UsageError, match="nested deeper than 64"):
        chat.schema_grammar(nested(100_000))
    with pytest.raises(UsageError, match=f"the limit is {MAX_CHARS}"):
        chat.schema_grammar({"enum": ["x" * 100] * 1000})
    with pytest.raises(UsageError, match="the regular expression has"):
        chat.regex_grammar("a" * 100_000)
    chat.schema_grammar(nested(30))


WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}


@pytest.mark.parametrize("grammar", [chat.schema_grammar(WIDE), *map(chat.regex_grammar, [
    r"((((a{1,1000}){1,1000}){1,1000}){1,1000})", r"(.*a.{200}){3}", r"\p{L}{1,5000}\w{1,5000}", r"(a+)+b"])])
def test_a_costly_grammar_is_followed_or_ends_in_an_error(grammars, grammar):
    try:
        walk(grammars.compile(grammar), np.random.default_rng(1), most=60)
    except UsageError as error:
        assert "cannot be followed" in error.what


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    words = Tokenizer(Backend(models.WordLevel({"a": 0, "b": 1, "<e>": 2}, unk_token="a")),
                      Marks(stop_token_ids=frozenset({2})))
    with pytest.raises(Unsupported, match="no bytes of their own"):
        chat.Grammars(words).compile(chat.schema_grammar(PERSON))


def test_an_automaton_that_other_answers_filled_is_renewed(tokenizer):
    text = chat.schema_grammar({"type": "string", "minLength": 50_000})
    grammar = chat.Grammars(tokenizer).compile(text)
    for seed in range(8):  # 36,000 characters, each of them a state, where 20,000 have room
        rng, token_ids = np.random.default_rng(seed), []
        follower, alone = grammar.follow(), chat.Grammars(tokenizer).compile(text).follow()
        for _ in range(500):
            bits = follower.allowed(token_ids)
            assert bits == alone.allowed(token_ids)
            token_ids.append(int(rng.choice(np.nonzero(np.unpackbits(np.frombuffer(bits, np.uint8),
                                                                     bitorder="little"))[0])))


def test_an_answer_that_fills_an_automaton_alone_ends(tokenizer):
    follower = chat.Grammars(tokenizer).compile(chat.schema_grammar({"type": "string",
                                                                     "minLength": 50_000})).follow()
    letter = tokenizer.encode("a")
    with pytest.raises(UsageError, match="too many states"):
        for count in range(30_000):
            follower.allowed([tokenizer.encode('"')[-1], *letter * count])
