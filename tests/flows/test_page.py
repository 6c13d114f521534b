"""The web page in a real browser, against a real server: what people do with it."""

import json
import time

import httpx
import openai
import pytest
import torch
from support.browser import Visit, browsing
from support.serving import serving
from support.tiny import build_llama

from openhearth.accounts import Key, Keys, hash_secret

SEEDED = {"seed": "7", "temperature": "1", "max_completion_tokens": "12"}


@pytest.fixture(scope="module")
def browser():
    with browsing() as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "tiny"
    build_llama(folder, max_position_embeddings=32768)
    return folder


@pytest.fixture(scope="module")
def server(folder, browser):
    from openhearth.models.adapter_files import write_adapter
    from openhearth.models.lora import AdapterWeights

    torch.manual_seed(1)
    layer = "model.layers.0.self_attn.q_proj"
    (folder.parent / "polite").mkdir()
    pairs = {layer: (torch.randn(4, 64), torch.randn(64, 4))}
    write_adapter(folder.parent / "polite", AdapterWeights(pairs, 2.0), rank=4, alpha=8,
                  is_rank_stabilised=False, base_model="tiny", base_weights_sha256="")
    with serving(folder, folder.parent / "home", adapters={"polite": folder.parent / "polite"}) as running:
        yield running


@pytest.fixture
def visit(browser, server):
    one = Visit(browser, server.url)
    yield one
    one.end()


def without_end(visit):
    """Have the model never end an answer by itself."""
    visit.page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=json.dumps({**route.request.post_data_json, "logit_bias": {"2": -100}})))


def test_a_message_is_answered_as_the_api_answers_and_is_there_after_a_reload(visit, server):
    page = visit.open(**SEEDED, system="Be brief.")
    visit.ask("the quick brown fox")
    texts = visit.texts()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    expected = client.chat.completions.create(
        model="tiny", seed=7, temperature=1, max_completion_tokens=12, messages=[
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "the quick brown fox"}])
    page.evaluate("localStorage.clear()")
    page.reload()
    page.wait_for_selector(".message:nth-child(2)")
    assert visit.texts() == texts
    assert texts[0] == "the quick brown fox"
    stored = page.evaluate("""async () => { const {Store} = await import('/page/store.js');
        const [one] = await (await Store.open()).all();
        return Object.values(one.nodes).filter((node) => node.role).map((node) => node.content); }""")
    assert stored == ["the quick brown fox", expected.choices[0].message.content]
    assert page.title() == "the quick brown fox · hearth"
    assert page.locator("#conversations li").count() == 1


def test_words_come_one_by_one_and_stop_frees_the_pages(visit, server):
    page = visit.open(seed="1")
    without_end(visit)
    page.fill("#prompt", "go on")
    page.click("#send")
    visit.wait("document.querySelector('.assistant .text').innerText.length > 20")
    before = page.inner_text(".assistant .text")
    visit.wait("(length) => document.querySelector('.assistant .text').innerText.length > length",
               len(before) + 20)
    assert server.engine.stats().num_running == 1
    page.click("#stop")
    page.wait_for_selector("text=Stopped.")
    server.wait_idle()
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.unroute("**/v1/chat/completions")
    visit.ask("and now?")
    assert len(visit.texts()) == 4


def test_escape_stops_an_answer_and_what_was_written_stays(visit, server):
    page = visit.open(seed="1")
    without_end(visit)
    page.fill("#prompt", "go on")
    page.press("#prompt", "Enter")
    visit.wait("document.querySelector('.assistant .text')?.innerText.length > 20")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Stopped.")
    server.wait_idle()
    written = visit.texts()
    page.reload()
    page.wait_for_selector(".message:nth-child(2)")
    assert visit.texts() == written


def test_a_page_closed_on_the_way_keeps_what_had_come(visit, server):
    page = visit.open(seed="1")
    without_end(visit)
    page.fill("#prompt", "go on")
    page.press("#prompt", "Enter")
    visit.wait("""async () => { const {Store} = await import('/page/store.js');
        const [one] = await (await Store.open()).all();
        return one && Object.values(one.nodes).some((node) => node.state === 'streaming'
            && node.content.length > 40); }""")  # what has come is kept once a second
    page.reload()
    page.wait_for_selector("text=Interrupted")
    server.wait_idle()
    assert len(visit.texts()[1]) > 20


def test_another_answer_stands_beside_the_first(visit):
    page = visit.open(max_completion_tokens="8")
    visit.ask("one")
    first = visit.texts()[1]
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("text=2 / 2")
    visit.wait_answered()
    second = visit.texts()[1]
    assert visit.bodies[0] == visit.bodies[1]
    page.get_by_role("button", name="Version before").click()
    page.wait_for_selector("text=1 / 2")
    assert visit.texts()[1] == first
    page.reload()
    page.wait_for_selector("text=1 / 2")
    assert visit.texts()[1] == first
    page.get_by_role("button", name="Version after").click()
    page.wait_for_selector("text=2 / 2")
    assert visit.texts()[1] == second


def test_an_edited_question_is_another_branch_with_its_own_answer(visit):
    page = visit.open(**SEEDED)
    visit.ask("first wording")
    visit.ask("a follow-up")
    old = visit.texts()
    page.get_by_role("button", name="Edit").first.click()
    page.fill("form.edit textarea", "second wording")
    page.press("form.edit textarea", "Control+Enter")
    page.wait_for_selector("text=2 / 2")
    visit.wait_answered()
    assert visit.texts()[0] == "second wording" and len(visit.texts()) == 2
    assert visit.bodies[-1]["messages"] == [{"role": "user", "content": "second wording"}]
    page.get_by_role("button", name="Version before").click()
    page.wait_for_selector("text=1 / 2")
    assert visit.texts() == old


def test_an_edited_answer_is_what_the_model_is_told_it_said(visit):
    page = visit.open(**SEEDED)
    visit.ask("one")
    page.get_by_role("button", name="Edit").nth(1).click()
    page.fill("form.edit textarea", "I said **this**.")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector("text=2 / 2")
    assert visit.texts()[1] == "I said this."
    visit.ask("two")
    assert visit.bodies[-1]["messages"][1] == {"role": "assistant", "content": "I said **this**."}


def test_a_branch_begins_at_a_message_and_the_way_back_is_there(visit):
    page = visit.open(**SEEDED)
    visit.ask("one")
    visit.ask("two")
    both = visit.texts()
    page.get_by_role("button", name="Branch from here").click()
    visit.wait("document.querySelectorAll('.message').length === 2")
    page.get_by_role("button", name="Show what followed").click()
    visit.wait("document.querySelectorAll('.message').length === 4")
    assert visit.texts() == both
    page.get_by_role("button", name="Branch from here").click()
    visit.wait("document.querySelectorAll('.message').length === 2")
    visit.ask("three")
    assert visit.texts()[2] == "three"
    assert [message["content"] for message in visit.bodies[-1]["messages"][::2]] == ["one", "three"]
    page.get_by_role("button", name="Version before").click()
    visit.wait("document.querySelectorAll('.message .text')[2].innerText === 'two'")
    assert visit.texts() == both


def test_adapters_are_picked_by_name(visit, server):
    page = visit.open(**SEEDED)
    offered = page.eval_on_selector_all("#model option", "(all) => all.map((one) => one.value)")
    assert offered == ["tiny", "polite"]
    page.select_option("#model", "polite")
    before = len(server.log)
    visit.ask("one")
    server.wait_line(before, path="/v1/chat/completions", model="polite")
    assert page.locator(".assistant h2").inner_text() == "polite"


def test_a_setting_that_is_wrong_is_not_sent(visit):
    page = visit.open()
    page.get_by_role("button", name="Settings").click()
    page.fill("#set-temperature", "3")
    assert page.inner_text("#mistake-temperature") == "A number from 0 to 2."
    page.fill("#set-top_k", "1.5")
    assert page.inner_text("#mistake-top_k") == "A whole number."
    page.fill("#prompt", "one")
    page.press("#prompt", "Enter")
    assert page.evaluate("document.activeElement.id") == "set-temperature"
    assert page.input_value("#prompt") == "one" and not visit.bodies
    page.fill("#set-temperature", "0.5")
    page.fill("#set-top_k", "40")
    page.fill("#set-max_completion_tokens", "4")
    page.fill("#set-stop", "END\n\nSTOP")
    page.press("#prompt", "Enter")
    visit.wait_answered()
    body = visit.bodies[0]
    assert (body["temperature"], body["top_k"], body["max_completion_tokens"], body["stop"]) == (
        0.5, 40, 4, ["END", "STOP"])
    assert "top_p" not in body and "seed" not in body


def test_settings_belong_to_their_conversation(visit):
    page = visit.open(**SEEDED)
    page.get_by_role("button", name="Settings").click()
    page.fill("#set-system", "Be brief.")
    visit.ask("one")
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_selector("#welcome:visible")
    page.fill("#set-system", "")
    visit.ask("two")
    assert [message["role"] for message in visit.bodies[1]["messages"]] == ["user"]
    page.get_by_role("link", name="one").click()
    visit.wait("document.querySelector('#set-system').value === 'Be brief.'")


SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"],
          "additionalProperties": False}


def test_a_schema_is_sent_and_its_json_is_set_out_as_code(visit, server):
    page = visit.open(**SEEDED)
    page.get_by_role("button", name="Settings").click()
    page.select_option("#set-format", "json_schema")
    page.fill("#set-schema", "{")
    assert page.inner_text("#mistake-schema").startswith("This is no JSON")
    page.fill("#set-schema", json.dumps(SCHEMA))
    visit.ask("one")
    sent = visit.bodies[0]
    assert sent["response_format"] == {"type": "json_schema", "json_schema": {
        "name": "answer", "schema": SCHEMA, "strict": True}}
    del sent["stream"], sent["stream_options"]
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=sent)
    content = reply.json()["choices"][0]["message"]["content"]
    assert json.loads(page.inner_text(".assistant pre code")) == json.loads(content) == {"a": 1}


@pytest.mark.parametrize("pieces", [
    [{"reasoning_content": "First I "}, {"reasoning_content": "think."}, "The ", "answer."],
    [{"reasoning": "First I think."}, "The answer."],
    list("<think>First I think.</think>\n\nThe answer."),
])
def test_reasoning_is_apart_from_the_answer_and_closed(visit, pieces):
    page = visit.open()
    visit.answer_with(*pieces)
    visit.ask("one")
    assert visit.texts()[1] == "The answer."
    details = page.locator("details.reasoning")
    assert details.is_visible() and details.get_attribute("open") is None
    details.locator("summary").click()
    page.wait_for_selector("details.reasoning .prose p")
    assert details.locator(".prose").inner_text() == "First I think."
    visit.ask("two")
    assert visit.bodies[-1]["messages"][1]["content"].endswith("The answer.")


def test_text_that_only_begins_like_a_tag_is_shown_at_the_end(visit):
    visit.open()
    visit.answer_with("<thi")
    visit.ask("one")
    assert visit.texts()[1] == "<thi"


def test_an_answer_that_breaks_off_says_so(visit):
    page = visit.open()
    visit.answer_with("Half of", settled=False)
    visit.ask("one")
    assert visit.texts()[1] == "Half of"
    assert "The connection ended before the answer did." in page.inner_text(".assistant [role=alert]")


def test_each_token_shows_what_else_could_have_come(visit, server):
    page = visit.open(**SEEDED, logprobs=True)
    visit.ask("one")
    sent = visit.bodies[0]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 8)
    del sent["stream"], sent["stream_options"]
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=sent).json()
    expected = reply["choices"][0]["logprobs"]["content"]
    page.get_by_role("button", name="Token probabilities").click()
    tokens = page.locator("button.token")
    assert tokens.count() == len(expected)
    tokens.nth(0).focus()
    for place in range(1, len(expected)):
        page.keyboard.press("ArrowRight")
        assert tokens.nth(place).evaluate("(one) => one === document.activeElement")
        shown = page.locator(".alternatives .share").all_inner_texts()
        drawn = {one["token"] for one in expected[place]["top_logprobs"]}
        assert len(shown) == 8 + (expected[place]["token"] not in drawn)
    page.keyboard.press("Home")
    tokens.nth(1).hover()
    best = 100 * 2.718281828459045 ** expected[1]["top_logprobs"][0]["logprob"]
    shown = page.locator(".alternatives .share").all_inner_texts()
    assert any(abs(float(one.removesuffix(" %").removeprefix("< ")) - best) < 0.06 for one in shown)


def test_conversations_are_found_renamed_and_deleted(visit):
    page = visit.open(**SEEDED)
    for text in ("apples and pears", "rivers"):
        page.get_by_role("button", name="New conversation").click()
        page.wait_for_selector("#welcome:visible")
        visit.ask(text)
    titles = page.locator("#conversations a")
    page.fill("#search", "PEARS")
    visit.wait("document.querySelectorAll('#conversations li').length === 1")
    assert titles.all_inner_texts() == ["apples and pears"]
    page.fill("#search", "")
    visit.wait("document.querySelectorAll('#conversations li').length === 2")
    page.locator("#conversations li").nth(1).hover()
    page.get_by_role("button", name="Rename “apples and pears”").click()
    page.fill("dialog input", "fruit")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="fruit").wait_for()
    page.locator("#conversations li", has_text="rivers").hover()
    page.get_by_role("button", name="Delete “rivers”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    visit.wait("document.querySelectorAll('#conversations li').length === 1")
    assert page.locator("#welcome").is_visible()
    page.reload()
    page.get_by_role("link", name="fruit").click()
    page.wait_for_selector(".message:nth-child(2)")
    assert visit.texts()[0] == "apples and pears"


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(visit, server):
    page = visit.open(seed="1")
    without_end(visit)
    page.fill("#prompt", "go on")
    page.press("#prompt", "Enter")
    visit.wait("document.querySelector('.assistant .text')?.innerText.length > 20")
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete “go on”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    server.wait_idle()
    page.reload()
    page.wait_for_selector("text=No conversations yet.")


def test_an_export_is_imported_elsewhere_as_it_was(visit, browser, server, tmp_path):
    page = visit.open(**SEEDED, logprobs=True)
    visit.ask("one")
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("text=2 / 2")
    visit.wait_answered()
    texts = visit.texts()
    with page.expect_download() as found:
        page.get_by_role("button", name="Export all").click()
    found.value.save_as(tmp_path / "all.json")
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["format"] == "openhearth-conversations" and len(document["conversations"]) == 1
    other = Visit(browser, server.url)
    other.open()
    other.page.set_input_files("#import-file", tmp_path / "all.json")
    other.page.get_by_role("link", name="one").click()
    other.page.wait_for_selector("text=2 / 2")
    assert other.texts() == texts
    other.page.get_by_role("button", name="Token probabilities").click()
    assert other.page.locator("button.token").count() > 0
    with other.page.expect_download() as found:
        other.page.get_by_role("button", name="Export all").click()
    found.value.save_as(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    before, after = (one["conversations"][0] for one in (document, again))
    assert after["settings"] == before["settings"] and after["nodes"].keys() == before["nodes"].keys()
    for name, node in before["nodes"].items():
        assert {field: after["nodes"][name][field] for field in node} == node
    other.end()


def export_of(**nodes):
    return json.dumps({"format": "openhearth-conversations", "version": 1,
                       "conversations": [{"nodes": nodes}]})


def test_a_file_that_is_no_export_is_refused(visit, tmp_path):
    page = visit.open()
    for content, reason in (
            ("{", "no JSON document"), ("{}", "no export of this page"), (export_of(), "has no messages"),
            (export_of(root={"children": ["root"]}), "no tree of messages"),
            (export_of(root={"children": ["a"]}), "no tree of messages"),
            (export_of(root={"children": ["__proto__"]}, __proto__={"children": [], "role": "user"}),
             "no tree of messages"),
            (export_of(root={"children": ["a"]}, a={"children": [], "role": "system"}), "role `system`")):
        (tmp_path / "x.json").write_text(content)
        page.set_input_files("#import-file", tmp_path / "x.json")
        page.locator("dialog", has_text=reason).wait_for()
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
    assert page.locator("#conversations li").count() == 0


HOSTILE = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>
[a](javascript:window.hacked=1) [b](JaVaScRiPt:window.hacked=1) [c](data:text/html,<script>1</script>)
![d](https://elsewhere.example/x.png) <javascript:hacked=1>
[e](https://elsewhere.example/ "t\\" onclick=hacked=1")
&lt;img src=x onerror=hacked=1&gt; [f](vbscript:x) [g](//elsewhere.example)

<iframe src="https://elsewhere.example"></iframe>

| <img src=x onerror=hacked=1> | b |
|---|---|
| <svg onload=hacked=1> | `<script>hacked=1</script>` |

```<img src=x onerror=hacked=1>
</code></pre><script>window.hacked=1</script>
```

1. <style>body{display:none}</style>
# <a href="javascript:hacked=1">h</a>
"""


def test_hostile_text_of_a_model_stays_text(visit):
    page = visit.open(logprobs=True)
    token = {"token": "<img src=x onerror=hacked=1>", "logprob": -1.0, "bytes": None, "top_logprobs": [
        {"token": "<script>hacked=1</script>", "logprob": -0.5, "bytes": None}]}
    visit.answer_with({"reasoning_content": HOSTILE}, HOSTILE, logprobs={"content": [token]})
    visit.ask("<img src=x onerror=hacked=1>" + HOSTILE)
    page.locator("details.reasoning summary").click()
    page.get_by_role("button", name="Token probabilities").click()
    page.locator("button.token").first.hover()
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#thread :is(img, script, iframe, style, svg:not(.icon), object, embed)").count() == 0
    hrefs = page.eval_on_selector_all("#thread a", "(links) => links.map((link) => link.href)")
    assert set(hrefs) == {"https://elsewhere.example/x.png", "https://elsewhere.example/"}
    marked = page.eval_on_selector_all(
        "#thread .text *", "(all) => all.flatMap((one) => one.getAttributeNames())")
    assert set(marked) <= {"href", "rel", "target", "class", "type", "tabindex", "role", "aria-label",
                           "scope", "data-align", "start"}
    assert "<script>window.hacked=1</script>" in visit.texts()[1]
    assert page.locator("#conversations a").inner_text().startswith("<img src=x")


def test_hostile_words_of_a_server_stay_text(visit):
    page = visit.open()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=429, headers={"retry-after": "3"}, json={"error": {"message": HOSTILE}}))
    visit.ask("one")
    shown = page.inner_text(".assistant [role=alert]")
    assert "<script>window.hacked=1</script>" in shown and "Try again in 3 s." in shown
    assert page.evaluate("window.hacked") is None
    visit.logged.clear()  # the browser itself logs a reply of 429


def test_code_is_copied(visit):
    page = visit.open()
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.answer_with("Here:\n\n```python\nprint('<b>')\n```\n")
    visit.ask("one")
    page.locator("figure.code").get_by_role("button").click()
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>')\n"
    page.locator(".assistant").get_by_role("button", name="Copy", exact=True).last.click()
    visit.wait("async () => (await navigator.clipboard.readText()).startsWith('Here:')")


def test_a_server_with_keys_is_asked_with_one(browser, folder):
    keys = Keys([Key("alice", hash_secret("secret-of-alice"))])
    with serving(folder, folder.parent / "home", keys=keys) as running:
        visit = Visit(browser, running.url)
        page = visit.open()
        assert page.locator("#notice").inner_text().startswith("This server wants an API key.")
        page.get_by_role("button", name="Enter a key").click()
        page.fill("dialog [name=key]", "secret-of-alice")
        page.keyboard.press("Enter")
        visit.wait("document.querySelector('#model').options.length === 1")
        assert page.locator("#notice").is_hidden()
        page.fill("#prompt", "one")
        page.press("#prompt", "Enter")
        visit.wait_answered()
        running.wait_line(path="/v1/chat/completions", key="alice")
        page.reload()
        page.wait_for_selector(".message:nth-child(2)")
        with page.expect_download() as found:
            page.get_by_role("button", name="Export all").click()
        assert "secret-of-alice" not in found.value.path().read_text()
        assert page.evaluate("JSON.stringify(localStorage)").find("secret-of-alice") == -1
        page.get_by_role("button", name="API key").click()
        page.check("dialog [name=keep]")
        page.get_by_role("button", name="Save").click()
        visit.wait("localStorage.getItem('openhearth.key') === 'secret-of-alice'")
        page.get_by_role("button", name="API key").click()
        page.fill("dialog [name=key]", "wrong")
        page.get_by_role("button", name="Save").click()
        page.wait_for_selector("text=this server does not know that key")
        visit.logged.clear()  # the browser itself logs a reply of 401
        visit.end()


STATE = {
    "version": "0.1", "uptime_s": 4000.0, "tokens_per_second": 41.26, "models": [{
        "name": "tiny", "adapters": ["polite"], "context_tokens": 8192, "cache_tokens": 16384, "waiting": 3,
        "max_waiting": 256, "running": 2, "pages": {"all": 1024, "used": 256, "cached": 100, "free": 668},
        "tokens": {"prompt": 1234567, "cached": 5, "drawn": 99}, "steps": 7, "preemptions": 0}],
    "memory": {"process_bytes": 3 << 30, "available_bytes": 5 << 30, "total_bytes": 8 << 30},
    "keys": [{"name": "<b>alice</b>", "role": "user", "state": "valid", "expires_at": None,
              "limits": {"tokens_per_day": 1000}, "used": {
                  "requests_per_minute": 1, "tokens_per_minute": 20, "tokens_per_day": 300,
                  "tokens_per_month": 4000, "tokens_total": 50000}}]}


def test_the_state_of_a_server_that_reports_it(visit):
    """The page's side of it: a document as `GET /v1/server/state` writes it for an admin."""
    visit.page.route("**/page/served.json", lambda route: route.fulfill(json={
        "version": "0.1", "needs_key": False, "paths": ["/v1/models", "/ready", "/v1/server/state"]}))
    visit.page.route("**/v1/server/state", lambda route: route.fulfill(json=STATE))
    page = visit.open("#/state")
    page.wait_for_selector("#state table")
    assert page.inner_text("#ready") == "Ready"
    shown = page.inner_text("#state")
    for text in ("41.3", "3 of 256", "3.0 GiB", "5.0 GiB of 8.0 GiB are free", "67 min",
                 "256 of 1 024 (25 %)", "1 234 567", "<b>alice</b>", "300 of 1 000", "50 000"):
        assert text in shown.replace("\u202f", " "), text
    assert page.locator("#state b").count() == 0
    assert page.evaluate("document.activeElement.id") == "server-title"
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_selector("#welcome:visible")
    page.wait_for_timeout(300)
    asked = visit.asked.count(f"{visit.url}/ready")
    page.wait_for_timeout(2500)
    assert visit.asked.count(f"{visit.url}/ready") == asked  # it asks only while it is looked at


def test_the_state_of_a_real_server(visit, server):
    page = visit.open("#/state")
    visit.wait("document.querySelector('#ready').textContent === 'Ready'")
    paths = httpx.get(f"{server.url}/page/served.json").json()["paths"]
    if "/v1/server/state" in paths:
        page.wait_for_selector("#state table")
    else:
        page.wait_for_selector("text=This server does not report its queue, speed, memory or keys.")


def test_a_server_that_is_gone_is_named(browser, folder):
    with serving(folder, folder.parent / "home") as running:
        visit = Visit(browser, running.url)
        page = visit.open()
    visit.ask("one")
    assert "The server cannot be reached." in page.inner_text(".assistant [role=alert]")
    visit.logged.clear()  # the browser itself logs a refused connection
    visit.end()


def test_another_conversation_can_be_read_while_one_is_answered(visit, server):
    page = visit.open(**SEEDED)
    visit.ask("short")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name="Settings").click()
    page.fill("#set-max_completion_tokens", "")
    without_end(visit)
    page.fill("#prompt", "long")
    page.press("#prompt", "Enter")
    visit.wait("document.querySelector('.assistant .text')?.innerText.length > 20")
    page.get_by_role("link", name="short").click()
    visit.wait("document.querySelector('.message .text').innerText === 'short'")
    assert page.locator("#send").is_visible()
    page.get_by_role("link", name="long").click()
    page.wait_for_selector("#stop:visible")
    before = len(visit.texts()[1])
    deadline = time.monotonic() + 120
    while len(visit.texts()[1]) <= before:
        assert time.monotonic() < deadline
    page.click("#stop")
    page.wait_for_selector("text=Stopped.")
    server.wait_idle()
