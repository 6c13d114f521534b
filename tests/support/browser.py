"""A headless Chromium, and pages that are watched: what they log, and whom they ask."""

import json
import os
import shutil
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]
ROOM = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextmanager
def browsing():
    """Give a browser until the block ends; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("HEARTH_TEST_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, or HEARTH_TEST_CHROMIUM=/path/to/it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One visitor's page. logged: errors of its console; asked: addresses of all its requests."""

    def __init__(self, browser, url, **settings):
        self.url = url
        self.context = browser.new_context(**{"viewport": ROOM, "reduced_motion": "reduce", **settings})
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.logged, self.asked, self.bodies = [], [], []
        self.page.on("console", lambda message: message.type in ("error", "warning")
                     and self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", self._note)

    def _note(self, request):
        self.asked.append(request.url)
        if request.method == "POST":
            self.bodies.append(request.post_data_json)

    def open(self, place="", **settings):
        """Open the page; settings are those of a new conversation."""
        if settings:
            self.context.add_init_script(
                "localStorage.getItem('openhearth.settings') ?? localStorage.setItem('openhearth.settings', "
                f"{json.dumps(json.dumps(settings))})")
        self.page.goto(f"{self.url}/{place}")
        self.wait("document.querySelector('#model').options.length "
                  "|| !document.querySelector('#notice').hidden")
        return self.page

    def wait(self, expression, argument=None):
        """Wait until an expression is true. The page's policy forbids the driver's own way, `eval`."""
        deadline = time.monotonic() + 120
        while not self.page.evaluate(expression, argument):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(20)

    def ask(self, text):
        """Send a message and wait for the end of its answer."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        self.wait_answered()

    def wait_answered(self):
        self.page.wait_for_selector(".message:last-child.assistant:not(.streaming) .actions button")
        self.page.wait_for_selector("#send:visible")

    def texts(self):
        """Return what the messages say."""
        return [message.inner_text() for message in self.page.locator(".message > .text").all()]

    def answer_with(self, *pieces, logprobs=None, settled=True):
        """Have the next answers be these deltas instead of the model's."""
        chunks = [{"choices": [{"index": 0, "finish_reason": None, "logprobs": logprobs,
                                "delta": piece if isinstance(piece, dict) else {"content": piece}}]}
                  for piece in pieces]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n" * settled
        self.page.route("**/v1/chat/completions", lambda route: route.fulfill(
            status=200, content_type="text/event-stream", body=body))

    def end(self):
        """Close, and check that nothing went wrong and nobody else was asked."""
        self.context.close()
        assert not self.logged
        hosts = {urlsplit(address).netloc for address in self.asked
                 if not address.startswith(("blob:", "data:"))}
        assert hosts <= {urlsplit(self.url).netloc}
