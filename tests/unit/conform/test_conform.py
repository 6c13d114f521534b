"""Checks of the wire: our own server passes, and a planted fault is found by the check that is for it."""

import itertools
import json
import re

import pytest
from support.faulty import Faulty, canned_app
from support.in_process import run_main
from support.serving import offer_tiny, serving_app, serving_models
from support.tiny import build_llama

from openhearth.accounts import Key, Keys, hash_secret
from openhearth.conform import DIALECTS, conform
from openhearth.conform import anthropic as a
from openhearth.conform import ollama as l
from openhearth.conform import openai as o
from openhearth.conform import openai_more as m
from openhearth.conform import responses as r
from openhearth.conform import tokenizing as t
from openhearth.conform.running import run_check
from openhearth.conform.wire import Peer
from openhearth.server import Models

KEY = "open-sesame"
OPTIONAL = {m.a_tool_is_called, m.a_tool_call_is_streamed, m.a_schema_is_followed, m.json_is_answered,
            m.embeddings_come, m.embeddings_are_cut, r.responses_answer, r.responses_stream,
            r.a_function_is_called, r.a_function_call_is_streamed, r.a_text_format_is_followed,
            a.a_tool_is_used, l.a_format_is_followed, l.embeddings_come}
DIALECT_OF = {check: dialect for dialect, checks in DIALECTS.items() for check in checks}


def title(check):
    return check.__doc__.splitlines()[0].removesuffix(".")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """(our server behind a wall that can change what it says, its address)."""
    walls = []

    def around(app):
        walls.append(Faulty(app))
        return walls[0]

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    build_llama(folder, max_position_embeddings=4096)  # a prompt with tools in words is long
    models = Models(offer_tiny({"tiny": folder}, tmp_path_factory.mktemp("home")), memory_bytes=1 << 30)
    keys = Keys([Key("us", hash_secret(KEY))])
    with serving_models(models, keys=keys, around=around) as running:
        yield walls[0], running.url


@pytest.fixture(scope="module")
def theirs():
    """The same of a server with canned answers."""
    wall = Faulty(canned_app)
    with serving_app(wall) as url:
        yield wall, url


def test_our_server_keeps_what_it_promises(ours):
    wall, url = ours
    wall.fault = None
    results = list(conform(url, key=KEY))
    assert [(one.check, one.reason) for one in results if one.outcome == "broken"] == []
    assert {one.check for one in results if one.outcome == "not served"} <= {title(one) for one in OPTIONAL}
    assert len(results) == sum(map(len, DIALECTS.values()))


@pytest.mark.parametrize("check", sorted(OPTIONAL, key=title), ids=lambda check: check.__name__)
def test_a_right_answer_to_what_is_optional_passes(theirs, check):
    wall, url = theirs
    wall.fault = None
    result = run_check(DIALECT_OF[check], check, Peer(url, "tiny", None, 20))
    assert (result.outcome, result.reason) == ("ok", "")


def swap(old, new, count=-1):
    """A fault that puts one text for another."""
    def fault(path, status, body, request):
        return status, body.replace(old, new, count)
    return fault


def change(pattern, new, count=0):
    """The same by a pattern."""
    def fault(path, status, body, request):
        return status, re.sub(pattern, new, body, count=count, flags=re.S)
    return fault


def says(old, new):
    """Another status."""
    def fault(path, status, body, request):
        return (new if status == old else status), body
    return fault


def streamed(inner):
    """A fault of streams alone."""
    def fault(path, status, body, request):
        return inner(path, status, body, request) if b'"stream": true' in request else (status, body)
    return fault


def whole(inner):
    """A fault of answers that are no streams."""
    def fault(path, status, body, request):
        return (status, body) if b'"stream": true' in request else inner(path, status, body, request)
    return fault


counting = itertools.count()


def restless(path, status, body, request):
    return status, body.replace('"content":"', f'"content":"{next(counting)}', 1)


def drop_second_choice(path, status, body, request):
    answer = json.loads(body) if status == 200 and body[:1] == "{" else {}
    if len(answer.get("choices", ())) > 1:
        answer["choices"].pop()
        return status, json.dumps(answer)
    return status, body


def add_stop(path, status, body, request):
    stop = json.loads(request).get("stop") if request[:1] == b"{" else None
    if isinstance(stop, str) and '"finish_reason":"stop"' in body:
        return status, body.replace('"refusal"', '"x":1,"refusal"').replace('","x"', f'{stop}","x"')
    return status, body


def append_stop(path, status, body, request):
    answer = json.loads(body)
    answer["choices"][0]["text"] += "".join(json.loads(request).get("stop", ()))
    return status, json.dumps(answer)


OUR_FAULTS = [
    (o.models_are_listed, swap('"list"', '"lists"')), (o.models_are_listed, swap('"tiny"', '"other"')),
    (o.one_model_is_shown, says(404, 200)),
    (o.chat_answers, change(r'"total_tokens":\d+', '"total_tokens":1')),
    (o.chat_answers, swap('"finish_reason":"length"', '"finish_reason":null')),
    (o.chat_answers, swap('"role":"assistant"', '"role":"user"')),
    (o.chat_answers, swap('"index":0', '"index":true')),
    (o.chat_answers, change("^.", "[")), (o.chat_answers, says(200, 500)),
    (o.chat_takes_only_what_is_required, says(200, 400)),
    (o.chat_ends_for_length, swap('"finish_reason":"length"', '"finish_reason":"content_filter"')),
    (o.messages_come_in_every_form, change(r'"(prompt|total)_tokens":\d+', r'"\1_tokens":24')),
    (o.a_stream_has_its_frame, swap("data: [DONE]\n\n", "")),
    (o.a_stream_has_its_frame, change(r"\n\n$", "\n")),
    (o.a_stream_has_its_frame, swap('"role":"assistant",', "", 1)),
    (o.a_stream_has_its_frame, swap("data: {", "event: chunk\ndata: {")),
    (o.a_stream_has_its_frame, change(r'"id":"chatcmpl', '"id":"other', 1)),
    (o.a_stream_has_its_frame, swap('"choices"', '"usage":{"prompt_tokens":1},"choices"')),
    (o.a_stream_has_its_frame, change('"finish_reason":null', '"finish_reason":"stop"', 1)),
    (o.a_stream_has_its_frame, swap("data: [DONE]", 'data: {"choices":[]}\n\ndata: [DONE]')),
    (o.a_stream_is_the_answer_in_pieces, streamed(swap('"content":"', '"content":"x', 2))),
    (o.a_stream_is_the_answer_in_pieces,
     streamed(swap('"finish_reason":"length"', '"finish_reason":"stop"'))),
    (o.a_stream_tells_its_usage, streamed(change(r'"choices":\[\],"usage":\{.*?\}\}\n', '"choices":[]}\n'))),
    (o.a_stream_tells_its_usage, streamed(change(r'"completion_tokens":\d+', '"completion_tokens":3'))),
    (o.a_seed_repeats, restless), (o.a_stop_text_ends_the_answer, add_stop),
    (o.several_answers, drop_second_choice),
    (o.log_probabilities, change(r'"logprob":-', '"logprob":')),
    (o.log_probabilities, change(r'"bytes":\[\d+', '"bytes":[33')),
    (o.log_probabilities, change(r'"top_logprobs":\[.*?\]\}', '"top_logprobs":[]}')),
    (o.a_bias_decides, change(r'"content":"(\\.|[^"])*"', '"content":"same"')),
    (o.what_is_wrong_is_refused, says(400, 200)),
    (o.what_is_wrong_is_refused, change(r'^\{"error":.*', '{"error":"no"}')),
    (o.an_unknown_model_is_not_found, swap('"model_not_found"', "null")),
    (o.a_prompt_that_is_too_long_says_so, swap('"context_length_exceeded"', '"too_long"')),
    (o.a_wrong_key_is_refused, says(401, 403)),
    (m.completions_answer, streamed(swap('"text":"', '"text":"x', 1))),
    (m.completions_stop, append_stop),
    (m.completions_answer, swap("text_completion", "chat.completion")),
    (m.several_prompts, change(r'"index":1', '"index":0')),
    (m.prompts_of_tokens, change(r'"(prompt|total)_tokens":\d+', r'"\1_tokens":9')),
    (m.an_echo_scores_its_prompt, swap('"token_logprobs":[null', '"token_logprobs":[-1.0')),
    (m.an_echo_scores_its_prompt, swap('"text_offset":[0,', '"text_offset":[')),
    (m.what_is_wrong_in_completions_is_refused, says(400, 500)),
    (r.a_response_is_kept, says(404, 200)), (r.a_response_is_kept, swap('"deleted":true', '"deleted":"yes"')),
    (r.a_response_is_kept, change(r'"input_tokens":\d+', '"input_tokens":9')),
    (a.messages_answer, swap('"type":"message"', '"type":"msg"')),
    (a.messages_end_for_length, swap('"output_tokens":1', '"output_tokens":2')),
    (a.a_stream_is_the_message_in_pieces, swap("event: content_block_delta\n", "")),
    (a.a_stream_is_the_message_in_pieces, swap('event: message_stop\ndata: {"type":"message_stop"}\n\n', "")),
    (a.a_stream_is_the_message_in_pieces, streamed(swap('"index":0', '"index":1'))),
    (a.a_stream_is_the_message_in_pieces, streamed(swap('"text_delta","text":"', '"text_delta","text":"x'))),
    (a.a_stream_is_the_message_in_pieces, change(r'event: content_block_stop\n.*?\n\n', "")),
    (a.a_stop_sequence_ends_the_message, change(r'"stop_sequence":"(\\.|[^"])*"', '"stop_sequence":null')),
    (a.system_and_blocks_are_read, change(r'"input_tokens":\d+', '"input_tokens":9')),
    (a.tokens_are_counted, whole(change(r'^\{"input_tokens":\d+', '{"input_tokens":9'))),
    (a.what_is_wrong_is_refused, swap("invalid_request_error", "bad_request")),
    (a.an_unknown_model_is_not_found, swap('"type":"error",', "")),
    (a.keys_come_in_either_header, says(401, 403)),
    (l.the_version_is_told, swap('"version"', '"release"')),
    (l.models_are_listed, swap('"digest"', '"hash"')), (l.a_model_is_shown, swap('"completion"', '"chat"')),
    (l.running_models_are_listed, change(r'"models":\[.*\]', '"models":[]')),
    (l.chat_streams_by_default, swap('"done":true', '"done":false')),
    (l.chat_streams_by_default, change(r"\n$", "")),
    (l.chat_streams_by_default, swap('"assistant"', '"model"')),
    (l.generate_answers, swap('"response"', '"text"')),
    (l.options_are_followed, change(r'"eval_count":\d+', '"eval_count":7')),
    (l.nothing_to_say_loads, swap('"done_reason":"load"', '"done_reason":"stop"')),
    (l.what_is_wrong_is_refused, change(r'^\{"error":".*', '{"error":{"message":"no"}}')),
    (t.a_text_comes_back, swap("fox", "f0x")), (t.a_text_comes_back, change(r'"count":\d+', '"count":3')),
    (t.a_conversation_has_its_tokens, change(r'"tokens":\[\d+,', '"tokens":[')),
]
THEIR_FAULTS = [
    (m.a_tool_is_called, swap('\\"city\\"', '\\"town\\"')),
    (m.a_tool_is_called, swap('"finish_reason": "tool_calls"', '"finish_reason": "stop"')),
    (m.a_tool_call_is_streamed, swap('[{"index": 0, "function"', '[{"function"')),
    (m.a_tool_call_is_streamed, swap('"index": 0, "function": {"arg',
                                     '"index": 0, "function": {"name": "get_weather", "arg')),
    (m.a_schema_is_followed, swap('\\"is_big\\": true', '\\"is_big\\": 1')),
    (m.json_is_answered, swap('{\\"a\\": 1}', "[1]")),
    (m.embeddings_come, swap('"index": 1', '"index": 0')),
    (m.embeddings_come, swap("[0.5, -0.5", "[0.25, -0.5", 1)),
    (m.embeddings_are_cut, swap("0.5", "0.7")),
    (r.responses_answer, swap('"input_tokens"', '"prompt_tokens"')),
    (r.responses_stream, swap('"sequence_number": 3', '"sequence_number": 30')),
    (r.responses_stream, swap("event: response.output_text.delta", "event: delta")),
    (r.responses_stream, swap('"delta": "One "', '"delta": "Two "')),
    (r.responses_stream, change(r"event: response.content_part.added\n.*?\n\n", "")),
    (r.a_function_is_called, swap('\\"city\\"', '\\"town\\"')),
    (r.a_function_is_called, swap('"call_id"', '"callid"')),
    (r.a_function_call_is_streamed, swap('"delta": "{', '"delta": "')),
    (r.a_function_call_is_streamed, swap("function_call_arguments.done", "function_call.done")),
    (r.a_text_format_is_followed, swap('\\"is_big\\": true', '\\"is_big\\": 1')),
    (a.a_tool_is_used, swap('"partial_json": "{', '"partial_json": "')),
    (a.a_tool_is_used, swap('"stop_reason": "tool_use"', '"stop_reason": "end_turn"')),
    (l.a_format_is_followed, swap("true}", "1}")), (l.embeddings_come, swap('"embeddings"', '"embedding"')),
]


@pytest.mark.parametrize("check,fault", OUR_FAULTS)
def test_a_fault_is_found_by_its_check(ours, check, fault):
    wall, url = ours
    wall.fault = fault
    result = run_check(DIALECT_OF[check], check, Peer(url, "tiny", KEY, 20))
    assert result.outcome == "broken", result
    [exchange] = result.exchanges
    assert exchange.request.split()[1].startswith("/") and result.reason
    assert KEY not in repr(result)


@pytest.mark.parametrize("check,fault", THEIR_FAULTS)
def test_a_fault_in_what_is_optional_is_found(theirs, check, fault):
    wall, url = theirs
    wall.fault = fault
    assert run_check(DIALECT_OF[check], check, Peer(url, "tiny", None, 20)).outcome == "broken"


def test_every_check_has_a_fault_and_a_name_of_its_own():
    checks = [check for checks in DIALECTS.values() for check in checks]
    assert {check for check, _ in (*OUR_FAULTS, *THEIR_FAULTS)} == set(checks)
    for checks in DIALECTS.values():
        assert len({title(check) for check in checks}) == len(checks)


def test_the_command_prints_what_breaks_and_its_exchange(ours, capfd):
    wall, url = ours
    wall.fault = swap('"digest"', '"hash"')
    done = run_main(capfd, "conform", url + "/v1/", "--dialect", "ollama", "--key", KEY)
    assert done.code == 1
    assert "  ok     `GET /api/version` has a version\n" in done.out
    assert "  BROKEN `GET /api/tags` lists models" in done.out
    assert "a model has no `digest`" in done.out and "| GET /api/tags\n" in done.out
    assert "| authorization: (a key)\n" in done.out and KEY not in done.out + done.err
    assert re.search(r" ok, 2 broken, \d+ not served\n$", done.err), done.err
    wall.fault = None
    wanted = ("--dialect", "ollama", "--dialect", "tokenize")
    done = run_main(capfd, "conform", url, *wanted, "--key", KEY, "--json")
    assert done.code == 0
    record = json.loads(done.out)
    assert record["counts"]["ok"] >= 10
    assert {one["dialect"] for one in record["results"]} == {"ollama", "tokenize"}


@pytest.mark.parametrize("args,words,code", [
    (("127.0.0.1:8000",), "is no address", 2), (("http://127.0.0.1:9", "--model", "m"), "0 ok", 1),
    (("http://127.0.0.1:9",), "had no answer", 6),
    (("http://127.0.0.1:9", "--dialect", "x"), "is no dialect", 2),
])
def test_what_cannot_be_checked_says_why(capfd, args, words, code):
    done = run_main(capfd, "conform", *args)
    assert done.code == code and words in done.err, done.err


def test_offline_reaches_no_other_machine(capfd, monkeypatch):
    monkeypatch.setenv("HEARTH_OFFLINE", "1")
    done = run_main(capfd, "conform", "http://203.0.113.1:8000")
    assert done.code == 6 and "is not this machine" in done.err
