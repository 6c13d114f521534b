"""The web page for everyone: keyboard, screen reader, light and dark, phone to wide screen."""

import pytest
from support.browser import PHONE, ROOM, Visit, browsing
from support.serving import serving

RICH = """## A heading

#### Two levels further

Some *text* with `code`, a [link](https://elsewhere.example/), and a list:

1. one
2. two

| name | value |
|---|--:|
| a | 1 |

> quoted

```python
print("a long line of code, longer than a phone is wide: " + "x" * 100)
```
"""
OTHER = {"token": "other", "logprob": -0.7, "bytes": None}
TOKENS = {"content": [{"token": token, "logprob": -place, "bytes": None, "top_logprobs": [OTHER]}
                      for place, token in enumerate(("The", " answer", "."))]}


@pytest.fixture(scope="module")
def browser():
    with browsing() as one:
        yield one


@pytest.fixture(scope="module")
def server(tiny_folder, browser, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as running:
        yield running


def check(page):
    """Have axe look at what is on the screen, by all its rules."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert not found, [(one["id"], [(node["target"], node["failureSummary"]) for node in one["nodes"]])
                       for one in found]


def fits(page):
    """Check that nothing makes the page itself wider than the screen."""
    wide = page.evaluate("""() => [...document.querySelectorAll('body, main, #scroller, #server, .drawer')]
        .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.id || one.tagName)""")
    assert not wide


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("screen", [ROOM, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_on_any_view(browser, server, screen, theme):
    visit = Visit(browser, server.url, viewport=screen, color_scheme=theme)
    page = visit.open()
    check(page)
    visit.answer_with({"reasoning_content": "First *this*."}, RICH, logprobs=TOKENS)
    visit.ask("Show me everything.")
    page.locator("details.reasoning summary").click()
    page.get_by_role("button", name="Token probabilities").click()
    page.locator("button.token").nth(2).focus()
    check(page)
    fits(page)
    page.get_by_role("button", name="Settings").click()
    page.select_option("#set-format", "json_schema")
    page.fill("#set-temperature", "9")
    check(page)
    page.locator("#settings .close").click()
    if screen is PHONE:
        page.get_by_role("button", name="Conversations").click()
        check(page)
        page.locator("#sidebar .close").click()
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    check(page)
    page.keyboard.press("Escape")
    page.goto(f"{server.url}/#/state")
    page.wait_for_selector("#server:visible")
    check(page)
    fits(page)
    if screen is PHONE:
        page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="API key").click()
    check(page)
    visit.end()


def test_a_conversation_by_keyboard_alone(browser, server):
    visit = Visit(browser, server.url)
    page = visit.open(max_completion_tokens="6")

    def name():
        return page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText")

    page.keyboard.press("Tab")
    assert name() == "Skip to the message field"
    page.keyboard.press("Enter")
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    visit.wait_answered()
    assert visit.texts()[0] == "first line\nsecond line"
    assert page.evaluate("document.activeElement.id") == "prompt"
    reached = []
    for _ in range(8):
        page.keyboard.press("Shift+Tab")
        reached.append(name())
    assert {"Copy", "Edit", "Regenerate"} <= set(reached)
    page.get_by_role("button", name="Regenerate").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=2 / 2")
    visit.wait_answered()
    page.get_by_role("button", name="Version before").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1 / 2")
    assert name() == "Version after"  # the one that was pressed has nowhere further to go
    page.get_by_role("button", name="Edit").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert name() == "Edit"
    visit.end()


def test_a_panel_over_a_phone_s_page_holds_the_focus_and_gives_it_back(browser, server):
    visit = Visit(browser, server.url, viewport=PHONE)
    page = visit.open()
    opener = page.get_by_role("button", name="Settings")
    opener.click()
    assert page.evaluate("document.querySelector('main').inert && document.querySelector('#sidebar').inert")
    assert page.evaluate("document.querySelector('#settings').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden() and not page.evaluate("document.querySelector('main').inert")
    assert page.evaluate("document.activeElement.id") == "show-settings"
    page.get_by_role("button", name="Conversations").click()
    page.mouse.click(PHONE["width"] - 10, 400)
    assert page.locator("#sidebar").is_hidden()
    visit.end()


def test_a_screen_reader_hears_paragraphs_and_not_every_word(browser, server):
    visit = Visit(browser, server.url)
    page = visit.open()
    page.evaluate("""() => { window.heard = [];
        const status = document.querySelector('#status');
        new MutationObserver(() => heard.push(status.textContent))
            .observe(status, {childList: true, characterData: true, subtree: true}); }""")
    words = [f"word{place} " for place in range(200)]
    visit.answer_with("First paragraph.\n\n", "```python\nx = 1\n```\n\n", *words)
    visit.ask("one")
    visit.wait("heard.at(-1).includes('End of the answer.')")
    heard = [text for text in page.evaluate("heard") if text]
    assert len(heard) <= 5
    whole = "\n".join(heard)
    assert whole.count("First paragraph.") == whole.count("word199") == 1 and "Code, 1 lines." in whole
    live = page.eval_on_selector_all("#thread [aria-live], #thread [role=log], #thread [role=status]",
                                     "(all) => all.length")
    assert live == 0
    visit.end()


def test_the_theme_follows_the_system_until_one_is_chosen(browser, server):
    visit = Visit(browser, server.url, color_scheme="dark")
    page = visit.open()

    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = background()
    page.emulate_media(color_scheme="light")
    light = background()
    assert light != dark
    page.select_option("#theme", "dark")
    assert background() == dark
    page.reload()
    assert background() == dark
    page.select_option("#theme", "auto")
    assert background() == light
    visit.end()


@pytest.mark.parametrize("width", [320, 768, 1024, 2560])
def test_nothing_is_wider_than_the_screen(browser, server, width):
    visit = Visit(browser, server.url, viewport={"width": width, "height": 800})
    page = visit.open()
    visit.answer_with(RICH + "\n" + "unbroken" * 60)
    visit.ask("unbroken" * 60)
    fits(page)
    line = page.evaluate("document.querySelector('.prose').clientWidth")
    assert line <= 46 * 16
    visit.end()
