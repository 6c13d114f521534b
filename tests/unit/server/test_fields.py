"""Tables of fields: every field of the official clients is in one, and one table reads and documents."""

import typing

import pytest

from openhearth.server.dialects import (
    anthropic,
    completions,
    embeddings,
    fim,
    ollama,
    ollama_embed,
    openai,
    openai_fields,
    response_fields,
)
from openhearth.server.errors import Refusal
from openhearth.server.fields import (
    Field,
    describe,
    flag,
    not_applicable,
    number,
    one_of,
    read_fields,
    refused,
    stop_texts,
    whole,
)

TABLE = (Field("count", "how many", whole(0, 5)), Field("is_on", "whether", flag),
         Field("t", "t", number(0, 2)), refused("tools", "not yet", []),
         not_applicable("user", "nobody is told"))


def names(fields):
    return {field.name for field in fields}


def annotations(kind):
    return set(typing.get_type_hints(kind))


def test_every_field_of_openai_is_known():
    from openai.types import completion_create_params
    from openai.types.chat import chat_completion_stream_options_param
    from openai.types.chat import completion_create_params as chat

    assert annotations(chat.CompletionCreateParamsBase) <= names(openai.CHAT_FIELDS)
    assert annotations(completion_create_params.CompletionCreateParamsBase) <= names(completions.FIELDS)
    options = chat_completion_stream_options_param.ChatCompletionStreamOptionsParam
    assert annotations(options) == names(openai_fields.STREAM_OPTIONS_FIELDS)


def test_every_field_of_responses_is_known():
    from openai.types.responses import (
        input_item_list_params,
        input_token_count_params,
        response_create_params,
        response_retrieve_params,
    )
    from openai.types.shared_params import reasoning

    made = annotations(response_create_params.ResponseCreateParamsBase) | {"stream"}
    assert made <= names(response_fields.CREATE_FIELDS)
    counted = annotations(input_token_count_params.InputTokenCountParams)
    assert counted == names(response_fields.INPUT_TOKENS_FIELDS)
    assert annotations(input_token_count_params.Text) == names(response_fields.TEXT_FIELDS)
    assert annotations(reasoning.Reasoning) == names(response_fields.REASONING_FIELDS)
    assert annotations(input_item_list_params.InputItemListParams) <= names(response_fields.ITEMS_QUERY)
    assert annotations(response_retrieve_params.ResponseRetrieveParamsBase) <= names(
        response_fields.RETRIEVE_QUERY)


def test_every_field_of_embeddings_is_known():
    from ollama._types import EmbeddingsRequest, EmbedRequest
    from openai.types import embedding_create_params

    assert annotations(embedding_create_params.EmbeddingCreateParams) == names(embeddings.FIELDS)
    assert set(EmbedRequest.model_fields) == names(ollama_embed.EMBED_FIELDS)
    assert set(EmbeddingsRequest.model_fields) == names(ollama_embed.EMBEDDINGS_FIELDS)


def test_every_field_of_anthropic_is_known():
    from anthropic.types import message_count_tokens_params, message_create_params

    counted = annotations(message_count_tokens_params.MessageCountTokensParams)
    assert annotations(message_create_params.MessageCreateParamsBase) <= names(anthropic.FIELDS)
    assert counted <= names(anthropic.PROMPT_FIELDS)


def test_every_field_of_ollama_is_known():
    from ollama._types import ChatRequest, GenerateRequest, Options, ShowRequest

    for kind, fields in ((ChatRequest, ollama.CHAT_FIELDS), (GenerateRequest, ollama.GENERATE_FIELDS),
                         (Options, ollama.OPTIONS_FIELDS), (ShowRequest, ollama.SHOW_FIELDS)):
        assert set(kind.model_fields) <= names(fields)


@pytest.mark.parametrize("fields", [openai.CHAT_FIELDS, completions.FIELDS, fim.FIELDS, anthropic.FIELDS,
                                    ollama.CHAT_FIELDS, ollama.GENERATE_FIELDS, ollama.OPTIONS_FIELDS,
                                    embeddings.FIELDS, ollama_embed.EMBED_FIELDS,
                                    response_fields.CREATE_FIELDS])
def test_no_field_is_in_a_table_twice_and_each_says_why(fields):
    assert len(names(fields)) == len(fields)
    assert all(field.note and (field.read is not None) == (field.status == "done") for field in fields)


def test_fields_are_read_and_null_is_not_given():
    body = {"count": 3, "is_on": None, "tools": [], "user": {"any": "thing"}, "t": 1}
    assert read_fields(TABLE, body) == {"count": 3, "t": 1.0}
    assert isinstance(read_fields(TABLE, body)["t"], float)


@pytest.mark.parametrize("body,field", [
    ({"other": 1}, "other"), ({"tools": [1]}, "tools"), ({"count": 6}, "count"), ({"count": True}, "count"),
    ({"count": 1.5}, "count"), ({"count": float("inf")}, "count"), ({"is_on": 1}, "is_on"),
    ({"t": float("nan")}, "t"), ({"t": float("inf")}, "t"), ({"t": "1"}, "t"), ({"t": 10**400}, "t"),
])
def test_what_is_wrong_is_named(body, field):
    with pytest.raises(Refusal) as caught:
        read_fields(TABLE, body)
    assert caught.value.field == field and f"`{field}`" in caught.value.what and caught.value.status == 400
    with pytest.raises(Refusal) as caught:
        read_fields(TABLE, body, "options")
    assert caught.value.field == f"options.{field}"


def test_a_whole_number_may_have_a_point():
    found = read_fields(TABLE, {"count": 3.0})["count"]
    assert found == 3 and isinstance(found, int)


def test_readers_compare_types_as_well():
    assert one_of(False)("x", False) is False
    with pytest.raises(Refusal):
        one_of(False)("x", 0)
    assert stop_texts(2)("x", ["a", "b"]) == ("a", "b")
    for value in (["a", "b", "c"], [""], [1], {"a": 1}):
        with pytest.raises(Refusal):
            stop_texts(2)("x", value)


def test_a_table_documents_itself():
    lines = describe(TABLE).splitlines()
    assert lines[0] == "| field | here | what it does, or why not |"
    assert "| `tools` | refused | not yet |" in lines
    assert "| `user` | not applicable | nobody is told |" in lines
