"""`/docs` in a real browser: offline, readable, searchable, linked, keyed, and what it shows is what was answered.

Without Chromium only what the files say is tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from gateway.documentation import ASSETS
from gateway.table import ROUTES
from tests.helpers.chromium import Page, found, opened
from tests.helpers.http_client import Client
from tests.helpers.served import served
from tests.helpers.server import STOCK, Server, running

KEY = "an-administrators-key-0123456789"
EXACT = "999999999999999.999999"
HOSTILE = "<img src=x onerror=alert(1)>"
slow_in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason="there is no Chromium on this machine"),
]


def text_of(name: str) -> str:
    return (files("gateway.pages") / name).read_text()


def test_the_page_names_no_other_server_and_holds_no_script_of_its_own() -> None:
    for name in ("docs.html", *ASSETS):
        text = text_of(name)
        assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]", text), name
        assert "innerHTML" not in text
        assert "eval(" not in text
    page = text_of("docs.html")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", page)
    asked = set(re.findall(r'(?:src|href)="/docs/([^"]+)"', page))
    for name in ASSETS:
        asked |= {one.removeprefix("./") for one in re.findall(r'from "(\./[^"]+)"', text_of(name))}
    assert asked == set(ASSETS)


async def test_the_policy_allows_only_what_this_server_sends() -> None:
    async with served() as server:
        policy = (await server.client.get("/docs")).headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        for name, kind in ASSETS.items():
            answer = await server.client.get(f"/docs/{name}")
            assert answer.headers["content-type"] == kind
            assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with API keys and one event."""
    directory = tmp_path_factory.mktemp("docs") / "data"
    directory.mkdir()
    environment = {"STRIPEMETER_AUTH": "required", "STRIPEMETER_ADMIN_KEY": KEY}
    with running(directory, module=STOCK, environment=environment) as started:
        event = {
            "tenantId": "acme",
            "metric": HOSTILE,
            "customerRef": "cus_anna",
            "quantity": EXACT,
        }
        with Client(started.port) as client:
            sent = client.request(
                "POST",
                "/v1/events/ingest",
                json.dumps({"events": [event | {"idempotencyKey": "k"}]}).encode(),
                {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
            )
        assert sent.json()["accepted"] == 1
        yield started


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab; at the end it has asked nobody but the server, and nothing was against the policy."""
    with opened(tmp_path_factory.mktemp("profile")) as tab:
        yield tab
        origin = f"http://127.0.0.1:{server.port}/"
        assert f"{origin}docs/try.js" in tab.requests
        others = {url for url in tab.requests if not url.startswith((origin, "data:,", "about:"))}
        assert others == set()
        assert [text for text in tab.complaints if "401" not in text] == []


class TestInABrowser:
    """What a person does with the page."""

    pytestmark = slow_in_a_browser

    def url(self, server: Server, fragment: str = "") -> str:
        return f"http://127.0.0.1:{server.port}/docs{fragment}"

    def test_it_lists_every_operation_and_fits_a_phone(self, server: Server, page: Page) -> None:
        page.open(self.url(server), width=390, height=844)
        assert page.run("document.querySelectorAll('.op').length") == len(ROUTES)
        page.run("document.querySelectorAll('.op').forEach((one) => { one.open = true; })")
        page.wait_until("document.querySelectorAll('.inside').length === " + str(len(ROUTES)))
        assert page.run("document.documentElement.scrollWidth") <= 390
        page.open(self.url(server))
        assert page.run("document.querySelectorAll('nav a').length") == len(ROUTES)

    def test_a_search_finds_fields_of_bodies_and_the_keyboard_reaches_all(
        self, server: Server, page: Page
    ) -> None:
        page.open(self.url(server))
        page.press("/")
        assert page.run("document.activeElement.id") == "filter"
        for letter in "latenessHours":
            page.press(letter, letter)
        shown = page.run("[...document.querySelectorAll('.op:not([hidden])')].map((one) => one.id)")
        assert {"createMapping", "updateMapping", "replayReplay"} <= set(shown)
        assert len(shown) < len(ROUTES) / 3
        page.press("Escape")
        assert page.run("document.querySelectorAll('.op[hidden]').length") == 0
        page.run("document.querySelector('.op summary').focus()")
        page.press("Enter", "\r")
        page.wait_until("document.querySelector('.op .inside')")
        page.press("Tab")
        assert page.run("document.activeElement.className") == "link"

    def test_a_link_leads_to_its_operation_with_its_examples(
        self, server: Server, page: Page
    ) -> None:
        page.open(self.url(server, "#createAdjustment"))
        page.wait_until("document.getElementById('createAdjustment').open")
        text = page.run("document.getElementById('createAdjustment').textContent")
        assert "Take one off" in text
        assert "urn:stripemeter:problem:bad-request" in text
        assert "adjustments:write" in text
        page.open(self.url(server, "#createRun"))
        text = page.run("document.getElementById('createRun').textContent")
        assert '"total": 220.00' in text, "as it was answered, to the last digit"
        page.open(self.url(server, "#createAdjustment"))
        assert (
            0 <= page.run("document.getElementById('createAdjustment').offsetTop - scrollY") < 900
        )

    def test_dark_and_light_follow_the_system_until_one_is_chosen(
        self, server: Server, page: Page
    ) -> None:
        colour = "getComputedStyle(document.body).backgroundColor"
        page.open(self.url(server), dark=True)
        dark = page.run(colour)
        page.run("document.getElementById('theme').click()")
        light = page.run(colour)
        assert light != dark
        page.open(self.url(server), dark=True)
        assert page.run(colour) == light, "it is remembered"
        page.run("localStorage.clear()")

    def tried(self, page: Page, operation: str, key: str) -> dict[str, Any]:
        """Fill the key in, press the button, and read what is shown."""
        part = f"document.getElementById('{operation}')"
        page.run(f"document.getElementById('key').value = '{key}'")
        page.run(f"{part}.open = true; {part}.querySelector('.trying').open = true;")
        page.wait_until(f"{part}.querySelector('.send')")
        page.run(f"{part}.querySelector('.output').replaceChildren()")
        page.run(f"{part}.querySelector('.send').click()")
        page.wait_until(f"{part}.querySelector('.output b')")
        return {
            "status": page.run(f"{part}.querySelector('.output b').textContent.slice(0, 3)"),
            "text": page.run(f"[...{part}.querySelectorAll('.output pre')].at(-1).textContent"),
            "images": page.run("document.querySelectorAll('main img').length"),
        }

    def test_a_request_is_tried_with_a_key_and_the_answer_is_shown_to_the_last_digit(
        self, server: Server, page: Page
    ) -> None:
        page.open(self.url(server, "#listEvents"))
        refused = self.tried(page, "listEvents", "")
        assert refused["status"] == "401"
        assert json.loads(refused["text"])["type"] == "urn:stripemeter:problem:unauthorized"
        part = "document.getElementById('listEvents')"
        page.run(f"{part}.querySelector('.try [name=metric]').value = ''")
        answered = self.tried(page, "listEvents", KEY)
        assert answered["status"] == "200", answered
        assert f'"quantity": {EXACT}' in answered["text"]
        assert json.loads(answered["text"])["events"][0]["metric"] == HOSTILE
        assert answered["images"] == 0, "what is answered is text"
        command = page.run(f"{part}.querySelector('.try > details pre').textContent")
        assert KEY not in command
        assert "YOUR_KEY" in command
