"""The page's Markdown, in a real browser, against markdown-it: CommonMark with tables and strikethrough."""

import random
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from starlette.applications import Starlette
from support.browser import Visit, browsing

from openhearth.listening import address_of, bind
from openhearth.server import Server
from openhearth.server.page_files import page_routes

ORACLE = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

SAMPLES = """
# One\n\nTwo *three* **four** ***five*** _six_ __seven__ `eight` ~~nine~~.
~
a*b*c a_b_c **bold**text __not__bold *a **b** c* **a *b* c** *unclosed **nested*
~
- one\n- two\n  - three\n    continued\n\n  paragraph\n- four
~
1. one\n2. two\n   ```js\n   x\n   ```\n3. three
~
3) three\n4) four\n\n- other\n+ third
~
- a\n\n- b\n- c
~
> quote\nlazy\n> > deeper\n\n> other
~
> - a\n> - b\n>\n> text
~
```python\nprint("<b>")\n```\n\ntext\n\n~~~\ntilde ``` inside\n~~~
~
````\n```\nnested fence\n```\n````
~
    indented code\n\n    more\n\ntext
~
a  \nhard break\\\nother\nsoft
~
| a | b | c |\n|:--|:-:|--:|\n| 1 | `x` | **y** |\n| only |\n| \\| | 2 | 3 | 4 |\n\nafter
~
Title\n===\n\nSub\n---\n\n***\n\n- - -\n\n## closed ##
~
[link](https://example.org/a_(b)?c=d&e=f "title") <https://example.org/x> <a@example.org>
~
[a *b*](https://example.org/) [not a link] [x](y z) ![pic](https://example.org/p.png) [](https://example.org/)
~
<div onclick="x">html</div> <script>alert(1)</script> &amp; &lt; &#65; &#x41; &nosuch; &copy;
~
`` a ` b `` ` `` ` `unclosed `` \\`escaped\\` \\*not\\* \\a
~
text\n# heading\ntext\n- item\ntext\n1. item\n\n7. seven
~
* a\n  * b\n    * c\n      * d\n\n\n* e
~
-\n- a\n-\n\n1.
~
Caf\u00e9 *\u4f60\u597d* **\U0001f600**bold** \u201c*quoted*\u201d $x_1 + x_2$ 2*3*4 snake_case_name
""".strip().split("\n~\n")

MARKS = ["a", "b", " ", " ", "\n", "\n", "*", "**", "_", "`", "[", "]", ")", "<", ">", "!", "# ", "- ", "1. ",
         "> ", "```\n", "|", "&", "  \n", "~~~\n"]

SHOW = """async (texts) => {
    const {MarkdownView} = await import('/page/markdown/view.js');
    return texts.map((text) => {
        const element = document.createElement('div');
        new MarkdownView(element).show(text);
        for (const code of element.querySelectorAll('.code')) code.replaceWith(code.querySelector('pre'));
        for (const wide of element.querySelectorAll('.wide')) wide.replaceWith(wide.firstChild);
        for (const node of element.querySelectorAll('*'))
            for (const {name} of [...node.attributes])
                if (name !== 'href' && name !== 'start') node.removeAttribute(name);
        return element.innerHTML; }); }"""

# What the page does otherwise: images are links, and headings go on from its own, leaving no level out.
PARSE = """(documents) => documents.map((text) => {
    const {body} = new DOMParser().parseFromString(text, 'text/html');
    for (const image of body.querySelectorAll('img')) {
        const link = document.createElement('a');
        link.href = image.src;
        link.append('image: ' + image.alt);
        image.replaceWith(link);
    }
    for (const node of body.querySelectorAll('*'))
        for (const {name} of [...node.attributes])
            if (name !== 'href' && name !== 'start') node.removeAttribute(name);
    const above = [];
    for (const heading of body.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
        const level = Number(heading.tagName[1]);
        while (above.at(-1) >= level) above.pop();
        const ranked = document.createElement(`h${Math.min(6, 2 + above.push(level))}`);
        ranked.append(...heading.childNodes);
        heading.replaceWith(ranked);
    }
    return body.innerHTML.replaceAll('<s>', '<del>').replaceAll('</s>', '</del>'); })"""

BLOCK = r"(</?(?:p|ul|ol|li|blockquote|h[1-6]|table|thead|tbody|tr|td|th|hr|pre)(?: [^>]*)?>)"


def plain(html):
    """Leave out white space that is not shown, and the line's end of a block of code."""
    html = re.sub(rf"\s*{BLOCK}\s*", r"\1", html)
    html = re.sub(r"\s*</code></pre>", "</code></pre>", re.sub(r"<br>\s*", "<br>", html))
    return re.sub(r"(?<!<pre>)<code>([^<]*)</code>", lambda code: f"<code>{' '.join(code[1].split())}</code>",
                  html).strip()


@pytest.fixture(scope="module")
def visit():
    import threading

    with browsing() as browser:
        bound, is_ready = bind("127.0.0.1", 0), threading.Event()
        server = Server(Starlette(routes=page_routes([], needs_key=True)), drain_s=1, on_ready=is_ready.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
        thread.start()
        assert is_ready.wait(120)
        one = Visit(browser, address_of(bound))
        one.open()
        yield one
        one.end()
        server.should_exit = True
        thread.join(20)


def compare(visit, texts):
    ours = visit.page.evaluate(SHOW, texts)
    blank = visit.context.new_page()  # the page's own policy forbids parsing HTML
    theirs = blank.evaluate(PARSE, [ORACLE.render(text) for text in texts])
    blank.close()
    return [(text, one, other) for text, one, other in zip(
        texts, map(plain, ours), map(plain, theirs), strict=True) if one != other]


def test_samples_look_as_commonmark_says(visit):
    assert not compare(visit, SAMPLES)


def test_the_project_s_own_pages_look_as_commonmark_says(visit):
    root = Path(__file__).parents[2]
    paths = (root / "README.md", *sorted((root / "docs").glob("*.md")))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    # Addresses within the project are no links on the page, and comments are HTML.
    texts = [re.sub(r"<!--.*?-->", "", re.sub(r"\]\((?!https?:)[^)]*\)", "]", text)) for text in texts]
    assert not compare(visit, texts)


def test_any_mixture_of_marks_looks_as_commonmark_says(visit):
    rng = random.Random(20261123)
    texts = ["".join(rng.choice(MARKS) for _ in range(rng.randint(1, 25))) for _ in range(1500)]
    assert not compare(visit, texts)


def test_a_text_that_grows_ends_as_one_that_came_at_once(visit):
    assert visit.page.evaluate("""async (texts) => {
        const {MarkdownView} = await import('/page/markdown/view.js');
        const show = (text, step) => {
            const element = document.createElement('div'), view = new MarkdownView(element);
            for (let end = step; end < text.length; end += step) view.show(text.slice(0, end));
            view.show(text);
            return element.innerHTML;
        };
        return texts.filter((text) => show(text, 1) !== show(text, text.length)); }""", SAMPLES) == []


def test_blocks_that_are_whole_keep_their_nodes(visit):
    assert visit.page.evaluate("""async () => {
        const {MarkdownView} = await import('/page/markdown/view.js');
        const element = document.createElement('div'), view = new MarkdownView(element);
        view.show('one\\n\\n```\\na');
        const [first, code] = [element.children[0], element.children[1]];
        view.show('one\\n\\n```\\na\\nb\\n```\\n\\ntwo');
        return [element.children[0] === first, element.children.length];
    }""") == [True, 3]


@pytest.mark.parametrize("piece", ["[", "![", "*a ", "**a_ ", "[a](", "<a", "&#", "http://", "- ", "> ", "|",
                                   "~a~ ", "a\n", "*_", "```\n", "#", "> a\nb\n", "- a\nb\n", "](http://x \"",
                                   "http://a))))"])
def test_no_text_keeps_the_page_busy(visit, piece):
    text = (piece * 50_000)[:50_000]
    seconds = visit.page.evaluate("""async (text) => {
        const {MarkdownView} = await import('/page/markdown/view.js');
        const view = new MarkdownView(document.createElement('div')), started = performance.now();
        view.show(text);
        return (performance.now() - started) / 1000; }""", text)
    assert seconds < 5  # 0.01 to 0.3 on an idle machine; minutes, were the work not bounded
