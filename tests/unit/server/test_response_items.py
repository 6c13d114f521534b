"""Answers as items of the Responses API, and items as a conversation, without a model."""

import json

from openhearth.chat import AnswerPiece
from openhearth.server.dialects.response_items import messages_of, read_input
from openhearth.server.dialects.response_output import OutputStream
from openhearth.server.generation import Part


def written(pieces, status="completed"):
    """Return (events, items) of pieces that come one by one."""
    stream = OutputStream(None, None)
    steps = [step for piece in pieces for step in stream.add(Part(0, "", (piece,), (), None, None))]
    return steps + list(stream.finish(status)), stream.items


def test_items_come_in_the_order_of_the_answer_and_the_last_has_its_status():
    steps, items = written([
        AnswerPiece("reasoning", "h"), AnswerPiece("reasoning", "m"), AnswerPiece("content", "I look."),
        AnswerPiece("call", "now", 0), AnswerPiece("arguments", "{}", 0),
        AnswerPiece("call", "now", 1), AnswerPiece("content", "So"),
        AnswerPiece("call", "weather", 2), AnswerPiece("arguments", '{"ci', 2)], "incomplete")
    assert [(item["type"], item["status"]) for item in items] == [
        ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"),
        ("function_call", "completed"), ("message", "completed"), ("function_call", "incomplete")]
    assert (items[0]["content"][0]["text"], items[1]["content"][0]["text"]) == ("hm", "I look.")
    assert [item["arguments"] for item in items if "arguments" in item] == ["{}", "", '{"ci']
    ids = [item["id"] for item in items] + [item["call_id"] for item in items if "call_id" in item]
    assert len(set(ids)) == 9
    added = [fields["item"] for kind, fields in steps if kind == "output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in items]
    assert {item["status"] for item in added} == {"in_progress"}
    assert [kind for kind, fields in steps if fields["output_index"] == 3] == [
        "output_item.added", "function_call_arguments.done", "output_item.done"]


def test_nothing_said_is_an_empty_message_and_a_thought_alone_is_a_thought():
    assert [(item["type"], item["content"][0]["text"]) for item in written([])[1]] == [("message", "")]
    [item] = written([AnswerPiece("reasoning", "h")], "incomplete")[1]
    assert (item["type"], item["status"]) == ("reasoning", "incomplete")


def test_what_belongs_together_is_one_turn():
    def thought(text):
        return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}

    def call(call_id):
        return {"type": "function_call", "call_id": call_id, "name": "now", "arguments": "{}"}

    def result(call_id):
        return {"type": "function_call_output", "call_id": call_id, "output": ""}

    given = read_input("input", [
        {"role": "user", "content": ""}, thought("a"), {"role": "assistant", "content": "b"}, call("1"),
        call("2"), result("1"), result("2"), thought("c"), call("3"), result("3"),
        {"role": "assistant", "content": "d"}, {"role": "assistant", "content": "e"}, call("4"),
        {"role": "assistant", "content": "f"}, thought("g")])
    given = json.loads(json.dumps(given))  # as the store has them
    turns = [(one["role"], one["content"], one.get("reasoning_content"),
              [called["id"] for called in one.get("tool_calls", [])]) for one in messages_of(given)]
    assert turns == [
        ("user", "", None, []), ("assistant", "b", "a", ["1", "2"]), ("tool", "", None, []),
        ("tool", "", None, []), ("assistant", "", "c", ["3"]), ("tool", "", None, []),
        ("assistant", "d", None, []), ("assistant", "e", None, ["4"]), ("assistant", "f", None, []),
        ("assistant", "", "g", [])]
    assert len({item["id"] for item in given}) == len(given)
