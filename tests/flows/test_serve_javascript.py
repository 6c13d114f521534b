"""The official JavaScript client: it reads the server as the Python one does.

HEARTH_TEST_NODE_MODULES names a `node_modules` folder that has the package `openai`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest
from support.serving import serving

MODULES = Path(os.environ.get("HEARTH_TEST_NODE_MODULES") or "node_modules")
SCRIPT = Path(__file__).parents[1] / "support" / "openai_client.mjs"
pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="no node: apt-get install nodejs npm"),
    pytest.mark.skipif(not (MODULES / "openai").is_dir(), reason=(
        "no JavaScript client: npm install openai@7.57.0, HEARTH_TEST_NODE_MODULES=$PWD/node_modules")),
]
QUESTION = "the quick brown fox"


def test_the_javascript_client_finds_what_the_python_client_finds(tiny_folder, tmp_path):
    shutil.copy(SCRIPT, tmp_path / SCRIPT.name)
    (tmp_path / "node_modules").symlink_to(MODULES.resolve())
    with serving(tiny_folder, tmp_path) as running:
        done = subprocess.run(["node", SCRIPT.name, f"{running.url}/v1", QUESTION], cwd=tmp_path, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        running.wait_idle()
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
        greedy = {"model": "tiny", "temperature": 0}
        messages = [{"role": "user", "content": QUESTION}]
        chat = client.chat.completions.create(**greedy, messages=messages, max_tokens=12, logprobs=True)
        assert found["chat"] == found["streamed"] == chat.choices[0].message.content == found["response"]
        assert found["logprobs"] == [token.logprob for token in chat.choices[0].logprobs.content]
        assert found["usage"] == found["streamedUsage"] == chat.usage.total_tokens
        text = client.completions.create(**greedy, prompt=QUESTION, max_tokens=12).choices[0].text
        assert found["completion"] == text
        vectors = client.embeddings.create(model="tiny", input=[QUESTION, "a"]).data
        assert found["embeddings"] == [one.embedding for one in vectors]
        first = client.responses.create(**greedy, input=QUESTION, max_output_tokens=12)
        second = client.responses.create(**greedy, input="and?", previous_response_id=first.id,
                                         max_output_tokens=12)
        assert (found["retrieved"], found["followed"]) == (first.output_text, second.output_text)
        assert found["events"][0] == "response.created" and found["events"][-1] == "response.incomplete"
        assert (found["ended"], found["items"], found["models"]) == ("stop", [QUESTION], ["tiny"])
        assert found["errors"] == [["NotFoundError", 404, "id"], ["NotFoundError", 404, "model"],
                                   ["BadRequestError", 400, "n"]]
