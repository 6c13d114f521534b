"""Schemas, tools and thoughts by the official clients, over a socket, with a model that knows nothing."""

import json
from typing import Literal

import anthropic
import httpx
import jsonschema
import ollama
import openai
import pydantic
import pytest
from support.serving import serving
from support.thinker import build_thinker

USER = [{"role": "user", "content": "the quick brown fox"}]


class Weather(pydantic.BaseModel):
    """Weather of a city."""

    model_config = pydantic.ConfigDict(extra="forbid")
    city: Literal["Paris", "Z\u00fcrich", "\u6771\u4eac"]
    days: Literal[1, 2, 3]


SCHEMA = Weather.model_json_schema()
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}},
         {"type": "function", "function": {"name": "now", "parameters": {
             "type": "object", "properties": {}, "additionalProperties": False}}}]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}
END = {"2": 12}  # a random model goes on where it may; this one rather ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("thinker") / "thinker"
    build_thinker(path)
    return path


@pytest.fixture(scope="module")
def marks(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {text: tokenizer.convert_tokens_to_ids(text) for text in ("<think>", "</think>", "<tool_call>")}


@pytest.fixture(scope="module")
def running(folder, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(running):
    return anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def llama(running):
    return ollama.Client(running.url)


def chat(client, **settings):
    body = {**QUIET, **settings.pop("extra_body", {})}
    return client.chat.completions.create(**{
        "model": "tiny", "messages": USER, "max_completion_tokens": 300, "seed": 1, "temperature": 2,
        "extra_body": body, "logit_bias": END, **settings})


def together(chunks):
    """Fold a stream as a client does by hand: (content, reasoning, calls, reason)."""
    content, reasoning, calls, reason = "", "", {}, None
    for chunk in chunks:
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.index not in calls:
                assert call.id and call.type == "function" and call.function.name
                calls[call.index] = [call.function.name, ""]
            else:
                assert call.id is None and call.function.name is None
            calls[call.index][1] += call.function.arguments or ""
    assert list(calls) == list(range(len(calls)))
    return content, reasoning, [tuple(call) for call in calls.values()], reason


def calls_of(message):
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def check_calls(calls):
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


def test_parse_gives_an_object_of_the_schema(client):
    for seed in range(4):
        answer = client.chat.completions.parse(model="tiny", messages=USER, response_format=Weather,
                                               seed=seed, extra_body=QUIET)
        assert isinstance(answer.choices[0].message.parsed, Weather)
        assert answer.choices[0].finish_reason == "stop"


def test_an_answer_that_is_cut_inside_its_schema_says_so(client):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=USER, response_format=Weather, max_tokens=3,
                                      extra_body=QUIET)


@pytest.mark.parametrize("settings,check", [
    ({"response_format": {"type": "json_schema",
                          "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}},
     lambda text: jsonschema.validate(json.loads(text), SCHEMA)),
    ({"extra_body": {"structured_outputs": {"json": json.dumps(SCHEMA)}}},
     lambda text: jsonschema.validate(json.loads(text), SCHEMA)),
    ({"extra_body": {"structured_outputs": {"regex": r"[a-f]{3}-\d{2}"}}},
     lambda text: [int(part, 16) for part in text.split("-")]),
    ({"extra_body": {"structured_outputs": {"choice": ["yes", "no, never"]}}},
     lambda text: ["yes", "no, never"].index(text)),
    ({"extra_body": {"structured_outputs": {"grammar": 'start: ("a" "b"){2,3}'}}},
     lambda text: ["abab", "ababab"].index(text)),
])
def test_the_answer_follows_what_was_asked_whole_and_streamed(client, settings, check):
    for seed in range(3):
        whole = chat(client, seed=seed, n=2, **settings)
        for choice in whole.choices:
            assert choice.finish_reason == "stop"
            check(choice.message.content)
        assert together(chat(client, seed=seed, stream=True, **settings)) == (
            whole.choices[0].message.content, "", [], "stop")


def test_any_object_is_an_object(client):
    texts = [chat(client, seed=seed, response_format={"type": "json_object"}, max_completion_tokens=40)
             for seed in range(4)]
    assert all(text.choices[0].message.content.startswith("{") for text in texts)
    ended = [text for text in texts if text.choices[0].finish_reason == "stop"]
    assert all(isinstance(json.loads(text.choices[0].message.content), dict) for text in ended)


def test_plain_completions_follow_grammars_too(client):
    answer = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=20, seed=2,
                                       extra_body={"structured_outputs": {"regex": r"\d{3}[xy]"}})
    assert all(len(choice.text) == 4 and choice.text[:3].isdigit() for choice in answer.choices)
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]


@pytest.mark.parametrize("body,field,message", [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
     "response_format", "Unimplemented"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
      "tool_choice": "required"}, "tools", "Unimplemented"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", "regex"),
    ({"structured_outputs": {"regex": "a" * 70000}}, "structured_outputs.regex", "limit"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "one of"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs", "nothing"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "structural_tag"),
    ({"tool_choice": "required"}, "tool_choice", "not there"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice",
     "weather"),
    ({"tools": TOOLS * 2}, "tools", "a name of its own"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
     "tools[0].function.parameters.type", "object"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "no `reasoning_effort`"),
])
def test_what_cannot_be_followed_is_refused_before_it_is_queued(running, body, field, message):
    reply = httpx.post(f"{running.url}/v1/chat/completions", timeout=30,
                       json={"model": "tiny", "messages": USER, **body})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, field), error
    assert message in error["message"]


@pytest.mark.parametrize("settings,counts,reason", [
    ({"tool_choice": "required"}, {1, 2, 3, 4}, "tool_calls"),
    ({"tool_choice": "required", "parallel_tool_calls": False}, {1}, "tool_calls"),
    ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {1}, "stop"),
])
def test_calls_that_are_required_are_valid_whole_and_streamed(client, settings, counts, reason):
    for seed in range(3):
        whole = chat(client, tools=TOOLS, seed=seed, **settings).choices[0]
        calls = calls_of(whole.message)
        check_calls(calls)
        assert (len(calls) in counts, whole.finish_reason, whole.message.content) == (True, reason, None)
        assert len({call.id for call in whole.message.tool_calls}) == len(calls)
        if reason == "stop":
            assert calls[0][0] == "weather"
        streamed = together(chat(client, tools=TOOLS, seed=seed, stream=True, **settings))
        assert streamed == ("", "", calls, reason)


def test_the_helpers_of_the_client_parse_calls(client):
    tool = openai.pydantic_function_tool(Weather, name="weather")
    with client.chat.completions.stream(model="tiny", messages=USER, tools=[tool], tool_choice="required",
                                        seed=4, extra_body=QUIET) as stream:
        kinds = {event.type for event in stream}
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, Weather)
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    parsed = client.chat.completions.parse(model="tiny", messages=USER, tools=[tool], tool_choice="required",
                                           seed=4, extra_body=QUIET)
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == call.function.parsed_arguments


def test_a_strict_tool_is_called_rightly_where_calls_are_free(client, marks):
    tools = [{**one, "function": {**one["function"], "strict": True}} for one in TOOLS]
    bias = {**END, str(marks["<tool_call>"]): 14}
    found = [chat(client, tools=tools, seed=seed, logit_bias=bias).choices[0] for seed in range(4)]
    called = [choice for choice in found if choice.message.tool_calls]
    assert called
    for choice in called:
        check_calls(calls_of(choice.message))
        assert choice.finish_reason == "tool_calls" and "<tool_call>" not in (choice.message.content or "")


def test_with_a_schema_and_tools_the_answer_is_one_or_the_other(client):
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
    found = [chat(client, tools=TOOLS, response_format=form, seed=seed).choices[0] for seed in range(6)]
    for choice in found:
        check_calls(calls_of(choice.message))
        if not choice.message.tool_calls:
            Weather.model_validate_json(choice.message.content)
    assert {bool(choice.message.tool_calls) for choice in found} == {True, False}


def test_a_conversation_with_calls_is_rendered_as_the_template_says(client, folder):
    from transformers import AutoTokenizer

    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"t": 3}'}]
    for tools in (TOOLS, openai.NOT_GIVEN):
        used = chat(client, messages=messages, tools=tools, max_completion_tokens=1).usage.prompt_tokens
        parsed = json.loads(json.dumps(messages).replace('"{\\"city\\": \\"Paris\\"}"', '{"city": "Paris"}'))
        parsed[1]["content"] = ""
        seen = [{**one, "function": {"description": "", **one["function"]}} for one in TOOLS]
        seen = [{"type": "function", "function": {name: one["function"][name] for name in (
            "name", "description", "parameters")}} for one in seen]
        text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            parsed, tools=seen if tools is TOOLS else None, tokenize=False, add_generation_prompt=True,
            enable_thinking=False)
        assert used == len(AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"])


def test_thoughts_are_split_and_counted(client, marks):
    bias = {str(marks["<think>"]): 100}
    opened = {"max_tokens": 1, "temperature": 0}
    first = client.chat.completions.create(model="tiny", messages=USER, logit_bias=bias, **opened)
    assert first.usage.completion_tokens_details.reasoning_tokens == 1
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
    bias = {**END, str(marks["<think>"]): 20, str(marks["</think>"]): 20}
    seen = []
    for seed in range(3):
        settings = {"model": "tiny", "messages": USER, "seed": seed, "logit_bias": bias,
                    "response_format": form, "max_tokens": 600}
        whole = client.chat.completions.create(**settings)
        message = whole.choices[0].message
        Weather.model_validate_json(message.content)
        seen.append(getattr(message, "reasoning_content", ""))
        assert seen[-1] == getattr(message, "reasoning", "")
        assert 0 < whole.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens
        streamed = together(client.chat.completions.create(stream=True, **settings))
        assert streamed == (message.content, seen[-1], [], "stop")
    assert any(seen)


def test_claude_tools_whole_and_streamed(claude):
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    for choice in ({"type": "tool", "name": "weather"}, {"type": "any", "disable_parallel_tool_use": True}):
        settings = {"model": "tiny", "messages": USER, "max_tokens": 400, "tools": tools,
                    "tool_choice": choice, "thinking": {"type": "disabled"},
                    "extra_body": {"temperature": 0}}
        whole = claude.messages.create(**settings)
        assert whole.stop_reason == "tool_use" and {block.type for block in whole.content} == {"tool_use"}
        for block in whole.content:
            jsonschema.validate(block.input, SCHEMAS[block.name])
        with claude.messages.stream(**settings) as stream:
            partial = "".join(event.partial_json for event in stream if event.type == "input_json")
            final = stream.get_final_message()
        assert [(block.name, block.input) for block in final.content] == [
            (block.name, block.input) for block in whole.content]
        assert json.loads(partial[:partial.index("}") + 1]) == whole.content[0].input
        assert final.stop_reason == "tool_use"
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": "3 degrees"}
                   for block in whole.content]
        turns = [*USER, {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
                 {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]}]
        del settings["tool_choice"]
        assert claude.messages.create(**{**settings, "messages": turns, "max_tokens": 5}).usage.output_tokens
        counted = claude.messages.count_tokens(model="tiny", messages=turns, tools=tools)
        assert counted.input_tokens > 100


def test_claude_thinks_no_longer_than_its_budget(claude):
    settings = {"model": "tiny", "messages": USER, "max_tokens": 60, "extra_body": {"top_k": 1}}
    for budget in (5, 20):
        answer = claude.messages.create(**settings, thinking={"type": "enabled", "budget_tokens": budget})
        kinds = [block.type for block in answer.content]
        assert kinds in (["text"], ["thinking", "text"])
    with claude.messages.stream(**settings, thinking={"type": "enabled", "budget_tokens": 5}) as stream:
        kinds = [block.type for block in stream.get_final_message().content]
    assert kinds in (["text"], ["thinking", "text"])


def test_claude_answers_follow_a_schema(claude):
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = claude.messages.create(model="tiny", messages=USER, max_tokens=300, output_config=config,
                                    thinking={"type": "disabled"})
    Weather.model_validate_json(answer.content[0].text)


def test_ollama_formats_tools_and_thoughts(llama):
    quiet = {"model": "tiny", "messages": USER, "think": False}
    for seed in range(3):
        options = {"seed": seed, "num_predict": 300}
        whole = llama.chat(**quiet, format=SCHEMA, options=options)
        Weather.model_validate_json(whole.message.content)
        parts = llama.chat(**quiet, format=SCHEMA, options=options, stream=True)
        assert "".join(part.message.content for part in parts) == whole.message.content
        made = llama.generate("tiny", "fox", format=SCHEMA, options=options, think=False)
        Weather.model_validate_json(made.response)
        llama.generate("tiny", "fox", format=SCHEMA, options=options, raw=True)
    assert json.loads(llama.chat(**quiet, format="json", options={"seed": 1}).message.content) is not None
    thoughtful = llama.chat(model="tiny", messages=USER, think=True, options={"num_predict": 5})
    assert thoughtful.eval_count == 5


def test_ollama_takes_calls_and_their_results(llama):
    call = {"function": {"name": "weather", "arguments": {"city": "Paris", "days": 1}}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "3", "tool_name": "weather"}]
    answer = llama.chat("tiny", messages=messages, tools=TOOLS, think=False, options={"num_predict": 4})
    assert answer.prompt_eval_count > 100
