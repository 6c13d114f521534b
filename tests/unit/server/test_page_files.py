"""The page's files as they are served: what they are, what they may do, who may have them."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import openhearth.server
from openhearth.server.page_files import page_routes

FOLDER = Path(openhearth.server.__file__).with_name("page")
MODULES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js"))


@pytest.fixture(scope="module")
def client():
    return TestClient(Starlette(routes=page_routes(["/ready", "/v1/models", "/ready"], needs_key=True)))


def test_the_page_may_run_its_own_files_and_ask_its_own_server_alone(client):
    reply = client.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_is_there_and_parses_no_html(client, name):
    reply = client.get(f"/page/{name}")
    assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
    for target in re.findall(r'from "(\.[^"]+)"', reply.text):
        assert (FOLDER / name).parent.joinpath(target).is_file(), target
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser|https?://(?!www\.w3\.org)",
                         reply.text.replace(r"https?:\/\/", ""))
    assert len(reply.text.splitlines()) <= 400


def test_every_style_and_script_of_the_document_is_there(client):
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', client.get("/").text)
    assert len(names) >= 6
    assert all(client.get(f"/{name}").status_code == 200 for name in names)


def test_the_page_learns_which_paths_are_served(client):
    served = client.get("/page/served.json").json()
    assert (served["paths"], served["needs_key"]) == (["/ready", "/v1/models"], True)


@pytest.mark.parametrize("path", ["/page/", "/page/nothing.js", "/page/../page_files.py",
                                  "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/css"])
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


def test_a_file_that_did_not_change_is_not_sent_again(client):
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/dom.js", headers={"if-none-match": first.headers["etag"]}).status_code == 200
