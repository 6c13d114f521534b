"""A server with planted faults: answers are changed on their way out. And one with canned answers."""

import base64
import json
import struct


class Faulty:
    """An ASGI application around another. fault: (path, status, body) -> (status, body), or None for none.

    A fault sees the request as well where it takes four arguments.
    """

    def __init__(self, app):
        self.app, self.fault = app, None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or self.fault is None:
            await self.app(scope, receive, send)
            return
        request, start, parts = bytearray(), {}, []

        async def receive_noting():
            message = await receive()
            request.extend(message.get("body", b""))
            return message

        async def keep(message):
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self.app(scope, receive_noting, keep)
        if not start:
            return
        status, body = self.fault(scope["path"], start["status"], b"".join(parts).decode(), bytes(request))
        body = body.encode()
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        await send({**start, "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


CALL = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
VECTOR = [0.5, -0.5, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0]


def canned(path, body):
    """Return a right answer to a request for what is optional: an object, or the bytes of a stream."""
    if path == "/v1/models":
        return {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "us"}]}
    if path == "/v1/chat/completions":
        return _chat(body)
    if path == "/v1/messages":
        return _message(body)
    if path == "/v1/embeddings":
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vector = VECTOR[:body.get("dimensions", 8)]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        return {"object": "list", "model": "tiny", "usage": {"prompt_tokens": 3, "total_tokens": 3},
                "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(texts))]}
    if path == "/v1/responses":
        return _response(body)
    if path == "/api/embed":
        return {"model": "tiny", "embeddings": [VECTOR for _ in body["input"]]}
    if path == "/api/chat":
        return {"model": "tiny", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop",
                "message": {"role": "assistant", "content": '{"is_big": true}'}, "total_duration": 1,
                "eval_count": 1, "eval_duration": 1, "prompt_eval_duration": 1}
    return None


async def canned_app(scope, receive, send):
    """An ASGI application of canned answers; 404 for the rest."""
    if scope["type"] != "http":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    content, more = b"", True
    while more:
        message = await receive()
        content, more = content + message.get("body", b""), message.get("more_body", False)
    answer = canned(scope["path"], json.loads(content or b"{}"))
    status = 404 if answer is None else 200
    kind = b"text/event-stream" if isinstance(answer, bytes) else b"application/json"
    body = answer if isinstance(answer, bytes) else json.dumps(answer or {"error": "not here"}).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


def events(values, *, is_named):
    """Return server-sent events."""
    return b"".join((f"event: {value['type']}\n" if is_named else "").encode()
                    + b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


def _chat(body):
    head = {"id": "c1", "created": 1, "model": "tiny"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    kind = body.get("response_format", {}).get("type")
    content = {"json_schema": '{"name": "Paris", "is_big": true}', "json_object": '{"a": 1}'}.get(kind)
    is_call = body.get("tool_choice") == "required" and body["messages"][-1]["role"] == "user"
    reason = "tool_calls" if is_call else "stop"
    if body.get("stream"):
        first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": CALL["name"],
                                                                              "arguments": ""}}
        deltas = [{"role": "assistant", "content": None}, {"tool_calls": [first]},
                  *({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
                    for piece in ('{"city"', ': "Paris"}')), {}]
        chunks = [{**head, "object": "chat.completion.chunk", "choices": [
            {"index": 0, "delta": delta, "finish_reason": None if delta else reason}]} for delta in deltas]
        return events(chunks, is_named=False) + b"data: [DONE]\n\n"
    message = {"role": "assistant", "content": content if content else (None if is_call else "Sunny.")}
    if is_call:
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": CALL}]
    return {**head, "object": "chat.completion", "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def _message(body):
    head = {"id": "m1", "type": "message", "role": "assistant", "model": "tiny", "stop_sequence": None}
    usage = {"input_tokens": 3, "output_tokens": 2}
    is_call = body["tool_choice"]["type"] == "any"
    block = {"type": "tool_use", "id": "t1", "name": CALL["name"], "input": json.loads(CALL["arguments"])}
    content = [block] if is_call else [{"type": "text", "text": "Sunny."}]
    reason = "tool_use" if is_call else "end_turn"
    if not body.get("stream"):
        return {**head, "content": content, "stop_reason": reason, "usage": usage}
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta",
                                                                    "partial_json": piece}}
              for piece in ('{"city":', '"Paris"}')]
    return events([
        {"type": "message_start", "message": {**head, "content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}, *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"}], is_named=True)


def _response(body):
    text = '{"name": "Paris", "is_big": true}' if "text" in body else "One two."
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "i1", "role": "assistant", "status": "completed", "content": [part]}
    is_call = body.get("tool_choice") == "required"
    if is_call:
        item = {"type": "function_call", "id": "i1", "call_id": "call_1", "status": "completed", **CALL}
    answer = {"id": "r1", "object": "response", "created_at": 1, "model": "tiny", "status": "completed",
              "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "instructions": None,
              "output": [item], "usage": {
                  "input_tokens": 3, "output_tokens": 2, "total_tokens": 5,
                  "input_tokens_details": {"cached_tokens": 0},
                  "output_tokens_details": {"reasoning_tokens": 0}}}
    if not body.get("stream"):
        return answer
    if is_call:
        place = {"item_id": "i1", "output_index": 0}
        middle = [("response.output_item.added", {"item": {**item, "arguments": ""}}),
                  *(("response.function_call_arguments.delta", {**place, "delta": piece})
                    for piece in ('{"city"', ': "Paris"}')),
                  ("response.function_call_arguments.done", {**place, "arguments": item["arguments"]})]
    else:
        middle = [("response.output_item.added", {"item": {**item, "content": []}}),
                  ("response.content_part.added", {"part": {**part, "text": ""}}),
                  *(("response.output_text.delta", {"delta": piece}) for piece in ("One ", "two.")),
                  ("response.output_text.done", {"text": text}),
                  ("response.content_part.done", {"part": part})]
    kinds = [("response.created", {"response": {**answer, "output": []}}),
             ("response.in_progress", {"response": {**answer, "output": []}}), *middle,
             ("response.output_item.done", {"item": item}), ("response.completed", {"response": answer})]
    return events([{"type": kind, "sequence_number": number, **fields}
                   for number, (kind, fields) in enumerate(kinds)], is_named=True)
