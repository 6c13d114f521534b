"""Documents ranked for a query, in the shapes of vLLM, Jina and text-embeddings-inference (TEI).

The score is how likely the model finds the query after the document: with q_1 .. q_n the query's tokens,

    score = exp(1/n * sum_i ln p(q_i | prompt(document), q_1 .. q_(i-1))),

a number from 0 to 1, the geometric mean of the tokens' probabilities; raw scores leave out exp. Source: query
likelihood with a language model, arXiv 2204.07496 (UPR), section 2.2. It wants no model trained for ranking,
and ranks documents of one query; scores of different queries are not on one scale.

Does not: run cross-encoders or heads that classify.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from openhearth.server.dialects.embeddings import MAX_INPUTS
from openhearth.server.dialects.openai_fields import error_document
from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call, Dialect, Route
from openhearth.server.fields import (
    Field,
    array,
    flag,
    not_applicable,
    read_fields,
    refused,
    require,
    shaped,
    text,
    whole,
    wrong,
)
from openhearth.server.reading import score

_BEFORE, _AFTER = "Passage: ", "\nPlease write a question based on this passage.\nQuestion:"
"""What a query is read after. Source: the instruction of arXiv 2204.07496, section 2.2."""


_LIST = {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": {"anyOf": [
    {"type": "string"}, {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"],
                         "additionalProperties": False}]}}


@shaped(_LIST)
def _texts(name: str, value: Any) -> list[str]:
    """Read texts, or objects of one text as Cohere's and Jina's clients may send them."""
    texts = [one.get("text") if isinstance(one, dict) and len(one) == 1 else one
             for one in array(name, value)]
    if not texts or len(texts) > MAX_INPUTS or not all(isinstance(one, str) for one in texts):
        raise wrong(name, value, f"1 to {MAX_INPUTS} texts")
    return texts


@shaped({"anyOf": [{"type": "string"}, _LIST]})
def _text_or_texts(name: str, value: Any) -> list[str]:
    return [value] if isinstance(value, str) else _texts(name, value)


_COMMON = (
    Field("model", "the served model, or one of its adapters; the model itself when left out", text),
    not_applicable("user", "names an end user; nobody is told here"),
    refused("truncate_prompt_tokens", "a text that is too long is refused; `truncate` cuts documents", -1),
    refused("mm_processor_kwargs", "this version reads text only", {}),
    refused("priority", "first come, first served; `0` is taken", 0),
)

RERANK_FIELDS = (
    *_COMMON,
    Field("query", "the text that documents are ranked for; required", text),
    Field("documents", f"up to {MAX_INPUTS} texts or `{{\"text\": ...}}`; answered as by vLLM and Jina",
          _texts),
    Field("top_n", "how many of the best to return; all when left out", whole(1, 2**31)),
    Field("return_documents", "the answer has the documents' texts unless `false`", flag),
    Field("texts", "instead of `documents`: the answer is a list, as of TEI", _texts),
    Field("return_text", "with `texts`: the answer has them", flag),
    Field("raw_scores", "the mean log-probability instead of its exponential", flag),
    Field("truncate", "documents that are too long lose their end; they are refused otherwise", flag),
    refused("truncation_direction", "documents lose their end; `Right` is taken", "Right", "right"),
    refused("max_tokens_per_doc", "`truncate` cuts what does not fit"),
)

SCORE_FIELDS = (
    *_COMMON,
    Field("text_1", "the query, or several; one is paired with every text of the other side", _text_or_texts),
    Field("text_2", "the document, or several", _text_or_texts),
    Field("use_activation", "`false` gives the mean log-probability instead of its exponential", flag),
    Field("activation", "the older name of `use_activation`", flag),
)


async def rerank(call: Call) -> dict[str, Any] | list[dict[str, Any]]:
    """`POST /rerank`."""
    values = read_fields(RERANK_FIELDS, call.body)
    require(values, "query")
    if ("documents" in values) == ("texts" in values):
        raise Refusal("a request has either `documents` or `texts`", field="documents", code="missing_field")
    _refuse_others(values, "texts", "return_documents", "top_n")
    _refuse_others(values, "documents", "return_text")
    documents = values.get("documents") or values["texts"]
    scores, num_tokens = await _score(call, values, [(values["query"], document) for document in documents],
                                      is_raw=values.get("raw_scores", False))
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    if "texts" in values:
        shown = values.get("return_text", False)
        return [{"index": index, "score": scores[index], **({"text": documents[index]} if shown else {})}
                for index in order]
    shown = values.get("return_documents", True)
    results = [{"index": index, "relevance_score": scores[index],
                **({"document": {"text": documents[index]}} if shown else {})} for index in order]
    return {"id": f"rerank-{secrets.token_hex(12)}", "model": values.get("model", call.served.name),
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "results": results[:values.get("top_n")]}


async def score_pairs(call: Call) -> dict[str, Any]:
    """`POST /score`."""
    values = read_fields(SCORE_FIELDS, call.body)
    require(values, "text_1", "text_2")
    queries, documents = values["text_1"], values["text_2"]
    count = max(len(queries), len(documents))
    if not {len(queries), len(documents)} <= {1, count}:
        raise Refusal(f"`text_1` has {len(queries)} texts, `text_2` {len(documents)}", field="text_2",
                      code="invalid_value", why="expected as many, or one of either")
    if len(queries) == 1:
        queries = queries * count
    if len(documents) == 1:
        documents = documents * count
    scores, num_tokens = await _score(
        call, values, list(zip(queries, documents, strict=True)),
        is_raw=not values.get("use_activation", values.get("activation", True)))
    return {"id": f"score-{secrets.token_hex(12)}", "object": "list",
            "model": values.get("model", call.served.name),
            "data": [{"index": index, "object": "score", "score": one} for index, one in enumerate(scores)],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}


def _refuse_others(values: Mapping[str, Any], shape: str, *names: str) -> None:
    """Refuse fields that the shape of a request has no use for. Raises: Refusal."""
    for name in names:
        if shape in values and name in values:
            raise Refusal(f"`{name}` is given with `{shape}`", field=name, code="unsupported_field",
                          hint="leave it out")


async def _score(call: Call, values: Mapping[str, Any], pairs: Sequence[tuple[str, str]], *,
                 is_raw: bool) -> tuple[list[float], int]:
    """Return the score of each (query, document), and how many tokens were read. Raises: Refusal."""
    served = call.served
    model = values.get("model", served.name)
    adapter = served.adapter_of(model)
    call.note(model=model)
    texts = [await _tokens(call, query, document, does_cut=values.get("truncate", False))
             for query, document in pairs]
    means = [math.fsum(logprobs) / len(logprobs) for logprobs in await score(call, texts, adapter)]
    return ([mean if is_raw else math.exp(mean) for mean in means],
            sum(len(beginning) + len(query) for beginning, query in texts))


async def _tokens(call: Call, query: str, document: str, *,
                  does_cut: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids that a query is read after, and its own. Raises: Refusal."""
    served = call.served
    asked = tuple(served.model.tokenizer.encode(f" {query}"))
    if not query.strip():
        raise Refusal("the query is empty", field="query", code="invalid_value")
    if not does_cut:
        return await served.encode(f"{_BEFORE}{document}{_AFTER}"), asked
    beginning, end = await served.encode(f"{_BEFORE}{document}"), served.model.tokenizer.encode(_AFTER)
    room = served.engine.context_length - 1 - len(asked) - len(end)
    if room < 1:
        raise Refusal(f"the query has {len(asked)} tokens", field="query", code="context_length_exceeded",
                      why=f"the context has {served.engine.context_length}")
    return (*beginning[:room], *end), asked


RANKING = Dialect("ranking", (
    *(Route("POST", path, rerank, RERANK_FIELDS) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    *(Route("POST", path, score_pairs, SCORE_FIELDS) for path in ("/score", "/v1/score")),
), error_document)
