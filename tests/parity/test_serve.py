"""An answer over HTTP does not depend on who else asks: same text and log-probabilities, to the last bit."""

import random
import threading

import httpx
import pytest
from support.serving import serving

PROBES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the quick brown fox"}], "seed": 7,
                              "n": 2, "logprobs": True, "top_logprobs": 4, "max_tokens": 60}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "dog " * 50}], "seed": 8,
                              "temperature": 1.3, "top_p": 0.9, "repetition_penalty": 1.1,
                              "stop": ["q", "\u3044"], "logprobs": True, "max_tokens": 60}),
    ("/v1/completions", {"prompt": ["The", "lazy cat sits"], "seed": 9, "logprobs": 3, "echo": True,
                         "max_tokens": 40}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a fox"}], "seed": 4, "n": 2,
                              "logprobs": True, "top_logprobs": 2, "max_tokens": 60, "response_format": {
                                  "type": "json_schema", "json_schema": {"name": "a", "schema": {
                                      "type": "array", "items": {"enum": [1, "x"]}}}}}),
    ("/api/chat", {"messages": [{"role": "user", "content": "hello"}], "stream": False, "logprobs": True,
                   "options": {"seed": 3, "num_predict": 40}}),
]
VOLATILE = {"id", "created", "created_at", "total_duration", "prompt_eval_duration", "eval_duration"}


def ask(url, path, settings):
    """Return the answer as it came, but for its id, times and what the cache had."""
    reply = httpx.post(url + path, json={"model": "tiny", **settings}, timeout=120)
    assert reply.status_code == 200, reply.text
    answer = {name: value for name, value in reply.json().items() if name not in VOLATILE}
    answer.get("usage", {}).pop("prompt_tokens_details", None)
    return answer


def stream_text(url):
    """Return every event of a streamed answer but for its id and time."""
    body = {"model": "tiny", "stream": True, **PROBES[0][1]}
    with httpx.stream("POST", url + PROBES[0][0], json=body, timeout=120) as reply:
        events = b"".join(reply.iter_raw()).decode()
    return [event[event.index('"model"'):] for event in events.split("\n\n") if '"model"' in event]


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


def load(running, place, stop, seen):
    """One neighbour: prompts of its own, some of them left half way. seen: how many it met in the engine."""
    chance = random.Random(place)
    while not stop.is_set():
        body = {"model": "tiny", "stream": True, "seed": place, "max_tokens": chance.randint(5, 80),
                "messages": [{"role": "user", "content": "the quick " * chance.randint(1, 60)}]}
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as reply:
            for count, _ in enumerate(reply.iter_raw()):
                if count == 1:
                    seen.append(running.engine.stats().num_running)
                if place % 3 == 0 and count == 10:
                    break


def test_answers_are_the_same_alone_and_beside_sixteen_others(running):
    alone = [ask(running.url, *probe) for probe in PROBES]
    streamed = stream_text(running.url)
    again = [ask(running.url, *probe) for probe in PROBES]
    assert again == alone, "the prefix cache changes an answer"
    running.wait_idle()
    stop, seen = threading.Event(), []
    neighbours = [threading.Thread(target=load, args=(running, place, stop, seen)) for place in range(16)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        for _ in range(2):
            for probe, expected in zip(PROBES, alone, strict=True):
                assert ask(running.url, *probe) == expected
            assert sorted(stream_text(running.url)) == sorted(streamed)
    finally:
        stop.set()
        for neighbour in neighbours:
            neighbour.join()
    assert max(seen) >= 8, "the neighbours were not there"
    running.wait_idle()
