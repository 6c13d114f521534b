"""OpenAI's dialect: models, chat completions, their streams and errors; `openai_more.py` has the rest.

What is checked: `openai` 3.54.0 (types, streaming) and the public API reference.

Does not: check what a model says, only how it is said; texts are compared with each other.
"""

from __future__ import annotations

import json
from typing import Any

from openhearth.conform.records import NotServed, expect, has, one_of, shown
from openhearth.conform.wire import Peer, Reply, data_of

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Count from one to ten."}]
GREEDY = {"messages": USER, "temperature": 0, "max_tokens": 24}
_REASONS = ("stop", "length", "tool_calls", "content_filter")


def read_chat(reply: Reply) -> dict[str, Any]:
    """Return a chat completion whose shape is right. Raises: Broken."""
    answer = has(reply.ok(), "the answer", id=str, object=str, created=int, model=str, choices=list,
                 usage=dict)
    one_of(answer["object"], "`object`", "chat.completion")
    expect(answer["choices"], "`choices` is empty")
    for place, choice in enumerate(answer["choices"]):
        where = f"choices[{place}]"
        has(choice, where, index=int, message=dict, finish_reason=str)
        expect(choice["index"] == place, f"`index` of {where} is {choice['index']}")
        one_of(choice["finish_reason"], f"`finish_reason` of {where}", *_REASONS)
        has(choice["message"], f"the message of {where}", role=str, content=(str, None))
        one_of(choice["message"]["role"], "`role`", "assistant")
    read_usage(answer["usage"])
    return answer


def read_usage(value: Any) -> dict[str, Any]:
    """Return a record of usage whose counts add up. Raises: Broken."""
    usage = has(value, "`usage`", prompt_tokens=int, completion_tokens=int, total_tokens=int)
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    expect(usage["total_tokens"] == total, f"`usage` does not add up: {shown(usage)}")
    expect(usage["prompt_tokens"] > 0, "`prompt_tokens` is 0")
    return usage


def read_chunks(reply: Reply, kind: str) -> list[dict[str, Any]]:
    """Return the chunks of a stream whose frame is right. Raises: Broken."""
    events = reply.events()
    expect(events and events[-1][1] == "[DONE]", "the stream does not end with `data: [DONE]`")
    expect(all(name is None for name, _ in events), "an event has an `event:` line")
    chunks = [has(data_of(event), "a chunk", id=str, object=str, created=int, model=str, choices=list)
              for event in events[:-1]]
    expect(chunks, "the stream has no chunk")
    one_of(chunks[0]["object"], "`object`", kind)
    for name in ("id", "object", "created", "model"):
        expect(len({chunk[name] for chunk in chunks}) == 1, f"`{name}` differs between chunks of one stream")
    for chunk in chunks:
        expect(not chunk.get("error"), "a chunk has an `error`: clients raise")
    return chunks


def read_error(reply: Reply, *statuses: int) -> dict[str, Any]:
    """Return an error in OpenAI's shape. Raises: Broken."""
    expect(reply.status in statuses, f"status {reply.status}, expected {' or '.join(map(str, statuses))}")
    return has(has(reply.json(), "the body", error=dict)["error"], "`error`", message=str, type=str)


def models_are_listed(peer: Peer) -> None:
    """`GET /v1/models` has a list of models."""
    listed = has(peer.served(peer.get("/v1/models")).ok(), "the answer", object=str, data=list)
    one_of(listed["object"], "`object`", "list")
    for model in listed["data"]:
        has(model, "a model", id=str, object=str, created=int, owned_by=str)
        one_of(model["object"], "`object` of a model", "model")
    expect(peer.model in [model["id"] for model in listed["data"]], f"`{peer.model}` is not in the list")


def one_model_is_shown(peer: Peer) -> None:
    """`GET /v1/models/{id}` shows one, and 404 for one that is not there."""
    model = has(peer.served(peer.get(f"/v1/models/{peer.model}")).ok(), "the model", id=str, object=str)
    expect(model["id"] == peer.model, f"`id` is {shown(model['id'])}")
    read_error(peer.get("/v1/models/no-such/model"), 404)


def chat_answers(peer: Peer) -> None:
    """A chat completion has its shape, and usage that adds up."""
    answer = read_chat(peer.served(peer.post(CHAT, **GREEDY)))
    content = answer["choices"][0]["message"]["content"]
    expect(isinstance(content, str), "`content` is null without a tool call")


def chat_takes_only_what_is_required(peer: Peer) -> None:
    """`model` and `messages` alone are enough (an answer that is stopped after a moment)."""
    reply = peer.served(peer.post(CHAT, messages=USER, max_completion_tokens=4))
    expect(read_chat(reply)["usage"]["completion_tokens"] <= 4, "`max_completion_tokens` was passed over")


def chat_ends_for_length(peer: Peer) -> None:
    """`max_tokens: 1` ends with `length` after one token."""
    answer = read_chat(peer.served(peer.post(CHAT, messages=USER, max_tokens=1, temperature=0)))
    if answer["choices"][0]["finish_reason"] != "stop":  # the model may have nothing to say
        one_of(answer["choices"][0]["finish_reason"], "`finish_reason`", "length")
    expect(answer["usage"]["completion_tokens"] == 1, f"`completion_tokens` is {shown(answer['usage'])}")


def messages_come_in_every_form(peer: Peer) -> None:
    """System and developer messages, earlier turns, and content in parts are read."""
    text = USER[0]["content"]
    forms = ([{"role": "system", "content": "Be brief."}, *USER],
             [{"role": "developer", "content": "Be brief."}, *USER],
             [*USER, {"role": "assistant", "content": "One."}, {"role": "user", "content": "Go on."}],
             [{"role": "user", "content": [{"type": "text", "text": text}]}])
    answers = [read_chat(peer.served(peer.post(CHAT, **{**GREEDY, "messages": form}))) for form in forms]
    counts = [answer["usage"]["prompt_tokens"] for answer in answers]
    plain = read_chat(peer.post(CHAT, **GREEDY))["usage"]["prompt_tokens"]
    expect(counts[0] == counts[1], "`developer` is not read as `system`: other `prompt_tokens`")
    expect(counts[2] > plain, "earlier turns are not in the prompt: as few `prompt_tokens`")
    expect(counts[3] == plain, "a text part is not read as the text: other `prompt_tokens`")


def a_stream_has_its_frame(peer: Peer) -> None:
    """A stream's chunks: the role first, a reason last, no usage that nobody asked for, then `[DONE]`."""
    chunks = read_chunks(peer.served(peer.post(CHAT, **GREEDY, stream=True)), "chat.completion.chunk")
    expect(all(chunk["choices"] for chunk in chunks),
           "a chunk has no choices, and nobody asked for usage: clients that read choices[0] fail")
    deltas, reasons = [], []
    for chunk in chunks:
        choice = has(chunk["choices"][0], "a choice", index=int, delta=dict)
        deltas.append(choice["delta"])
        reasons.append(choice.get("finish_reason"))
    expect(deltas[0].get("role") == "assistant", "the first delta has no `role`")
    expect(all(reason is None for reason in reasons[:-1]), "a chunk before the last has a `finish_reason`")
    one_of(reasons[-1], "the last `finish_reason`", *_REASONS)
    expect(not any(chunk.get("usage") for chunk in chunks), "there is `usage`, and nobody asked for it")


def a_stream_is_the_answer_in_pieces(peer: Peer) -> None:
    """The deltas of a greedy stream are the greedy answer's text."""
    whole = read_chat(peer.served(peer.post(CHAT, **GREEDY)))["choices"][0]
    chunks = read_chunks(peer.post(CHAT, **GREEDY, stream=True), "chat.completion.chunk")
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    expect("".join(pieces) == whole["message"]["content"],
           f"the stream says {shown(''.join(pieces))}, the answer {shown(whole['message']['content'])}")
    reasons = [chunk["choices"][0].get("finish_reason") for chunk in chunks if chunk["choices"]]
    expect(reasons[-1] == whole["finish_reason"],
           f"the stream ends with {shown(reasons[-1])}, the answer with {shown(whole['finish_reason'])}")


def a_stream_tells_its_usage(peer: Peer) -> None:
    """`stream_options.include_usage` adds one chunk with usage and no choices, before `[DONE]`."""
    reply = peer.served(peer.post(CHAT, **GREEDY, stream=True, stream_options={"include_usage": True}))
    *rest, last = read_chunks(reply, "chat.completion.chunk")
    expect(last["choices"] == [], "the last chunk before `[DONE]` has choices")
    usage = read_usage(last.get("usage"))
    expect(all(chunk.get("usage") is None for chunk in rest), "`usage` of another chunk is not null")
    whole = read_chat(peer.post(CHAT, **GREEDY))["usage"]
    for name in ("prompt_tokens", "completion_tokens"):
        expect(usage[name] == whole[name], f"`{name}` is {usage[name]} streamed and {whole[name]} not")


def a_seed_repeats(peer: Peer) -> None:
    """The same request with the same seed gives the same text."""
    texts = [read_chat(peer.served(peer.done(peer.post(
        CHAT, messages=USER, max_tokens=24, temperature=1, seed=7))))["choices"][0]["message"]["content"]
        for _ in range(2)]
    expect(texts[0] == texts[1], f"{shown(texts[0])}, then {shown(texts[1])}")


def a_stop_text_ends_the_answer(peer: Peer) -> None:
    """`stop` ends the answer before the text, which is not in it; a list of texts does as well."""
    whole = read_chat(peer.served(peer.post(CHAT, **GREEDY)))["choices"][0]["message"]["content"]
    stop = middle_of(whole)
    for given in (stop, ["\u0001 not there", stop]):
        choice = read_chat(peer.post(CHAT, **GREEDY, stop=given))["choices"][0]
        text = choice["message"]["content"]
        expect(text == whole[:whole.index(stop)],
               f"with stop {shown(stop)} the answer {shown(whole)} becomes {shown(text)}")
        one_of(choice["finish_reason"], "`finish_reason`", "stop")


def middle_of(text: str) -> str:
    """Return some characters from the middle of a text, plain ones. Raises: NotServed when it has none."""
    for start in range(len(text) // 3, len(text) - 1):
        piece = text[start:start + 3]
        if piece.strip() and piece.isascii() and piece.isprintable() and text.index(piece) > 0:
            return piece
    raise NotServed(f"not checked: the model's answer {shown(text)} has no text to stop at")


def several_answers(peer: Peer) -> None:
    """`n: 2` gives two choices, streamed as well."""
    settings = {"messages": USER, "max_tokens": 8, "n": 2, "seed": 1}
    answer = read_chat(peer.served(peer.done(peer.post(CHAT, **settings))))
    expect(len(answer["choices"]) == 2, f"{len(answer['choices'])} choices")
    chunks = read_chunks(peer.post(CHAT, **settings, stream=True), "chat.completion.chunk")
    found = {choice["index"] for chunk in chunks for choice in chunk["choices"]}
    expect(found == {0, 1}, f"the stream has the indexes {sorted(found)}")


def log_probabilities(peer: Peer) -> None:
    """`logprobs` and `top_logprobs`: one record for each token, likeliest first, whose bytes are the text."""
    answer = read_chat(peer.served(peer.done(peer.post(CHAT, **GREEDY, logprobs=True, top_logprobs=3))))
    choice = answer["choices"][0]
    records = has(has(choice, "the choice", logprobs=dict)["logprobs"], "`logprobs`", content=list)["content"]
    expect(records, "`logprobs.content` is empty")
    for record in records:
        has(record, "a token", token=str, logprob=(int, float), bytes=(list, None), top_logprobs=list)
        expect(record["logprob"] <= 1e-6, f"a log-probability is {record['logprob']}")
        top = [has(one, "an alternative", token=str, logprob=(int, float))["logprob"]
               for one in record["top_logprobs"]]
        expect(len(top) == 3 and top == sorted(top, reverse=True), f"`top_logprobs` are {shown(top)}")
    if all(record["bytes"] is not None for record in records):
        text = b"".join(bytes(record["bytes"]) for record in records).decode("utf-8", "replace")
        content = choice["message"]["content"]
        expect(text.startswith(content), f"the bytes say {shown(text)}, the answer {shown(content)}")


def a_bias_decides(peer: Peer) -> None:
    """`logit_bias` of 100 on a token makes the answer that token."""
    reply = peer.done(peer.post(CHAT, **{**GREEDY, "max_tokens": 4}, logit_bias={"70": 100}))
    first = read_chat(peer.served(reply))["choices"][0]["message"]["content"]
    other = read_chat(peer.post(CHAT, **{**GREEDY, "max_tokens": 4}, logit_bias={"80": 100}))
    expect(first != other["choices"][0]["message"]["content"], "another token's bias changes nothing")


def what_is_wrong_is_refused(peer: Peer) -> None:
    """Malformed JSON, missing and wrong fields are 400 (or 422) with an error object."""
    peer.served(peer.post(CHAT, **GREEDY))
    read_error(peer.post(CHAT, b'{"model": '), 400, 422)
    read_error(peer.post(CHAT, b"[]"), 400, 422)
    read_error(peer.post(CHAT, b'{"model": "\xff"}'), 400, 422)
    for wrong in ({}, {"messages": "hello"}, {"messages": []}, {**GREEDY, "temperature": "hot"},
                  {**GREEDY, "max_tokens": -5}, {**GREEDY, "temperature": -1}, {**GREEDY, "n": 0},
                  {**GREEDY, "messages": [{"role": "nobody", "content": "x"}]}):
        reply = peer.post(CHAT, **wrong)
        expect(reply.status in (400, 422), f"{shown(json.dumps(wrong))} has status {reply.status}")
        read_error(reply, 400, 422)


def an_unknown_model_is_not_found(peer: Peer) -> None:
    """A model that is not there is 404 with the code `model_not_found`."""
    peer.served(peer.post(CHAT, **GREEDY))
    error = read_error(peer.post(CHAT, {**GREEDY, "model": "no-such-model"}), 404)
    expect(error.get("code") == "model_not_found", f"`code` is {shown(error.get('code'))}")


def a_prompt_that_is_too_long_says_so(peer: Peer) -> None:
    """A prompt beyond the context is 400 with the code `context_length_exceeded`."""
    peer.served(peer.post(CHAT, **GREEDY))
    listed = peer.get("/v1/models")
    entries = listed.json().get("data", []) if listed.status == 200 else []
    longest = [entry["max_model_len"] for entry in entries if isinstance(entry.get("max_model_len"), int)]
    num_words = min(400_000, max(longest, default=200_000) + 1000)
    reply = peer.post(CHAT, messages=[{"role": "user", "content": "word " * num_words}], max_tokens=1)
    if reply.status == 200:
        raise NotServed(f"not checked: the context holds {num_words} words")
    error = read_error(reply, 400)
    expect(error.get("code") == "context_length_exceeded", f"`code` is {shown(error.get('code'))}")


def a_wrong_key_is_refused(peer: Peer) -> None:
    """Where a key is wanted, another one is 401 with an error object."""
    if peer.key is None:
        raise NotServed("not checked: no --key was given")
    peer.served(peer.post(CHAT, **GREEDY))
    body = {**GREEDY, "model": peer.model}
    read_error(peer.post(CHAT, body, headers={"authorization": "Bearer wrong"}), 401)


CHECKS = (models_are_listed, one_model_is_shown, chat_answers, chat_takes_only_what_is_required,
          chat_ends_for_length, messages_come_in_every_form, a_stream_has_its_frame,
          a_stream_is_the_answer_in_pieces, a_stream_tells_its_usage, a_seed_repeats,
          a_stop_text_ends_the_answer, several_answers, log_probabilities, a_bias_decides,
          what_is_wrong_is_refused, an_unknown_model_is_not_found, a_prompt_that_is_too_long_says_so,
          a_wrong_key_is_refused)
