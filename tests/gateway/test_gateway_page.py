"""The page at ``/``, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import chromium
import httpx
import pytest
from gateway_process import GatewayProcess

BROWSER = chromium.find()
PAGE = Path(__file__).resolve().parents[2] / "gateway" / "page.html"
KEY = "correct-horse-battery-staple"


@pytest.fixture
def browser() -> Iterator[chromium.Chromium]:
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    with chromium.Chromium(BROWSER) as browser:
        yield browser


def test_the_page_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)|@import|url\(|https?://""", text)
    answer = http.get("/")
    assert answer.text == text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_completion_is_coloured_and_timed(browser: chromium.Chromium, url: str) -> None:
    browser.open(url + "/")
    browser.wait("document.querySelectorAll('.lane').length >= 5")  # three stages, two processes
    assert "good" in browser.evaluate("document.getElementById('dot').className")
    browser.evaluate("document.getElementById('prompt').value = 'def add(<b>first</b>'")
    browser.evaluate("document.getElementById('max_tokens').value = '40'")
    browser.evaluate("document.getElementById('run').click()")
    browser.wait("['done', 'failed'].includes(document.body.dataset.state)")
    assert browser.evaluate("document.getElementById('message').textContent") == ""
    spans = "document.querySelectorAll('#output .{}').length"
    assert browser.evaluate(spans.format("drafted")) > 0
    assert browser.evaluate(spans.format("own")) > 0
    assert browser.evaluate(spans.format("prompt b")) == 0  # a prompt is text, not markup
    counted = browser.evaluate("document.getElementById('counts').textContent")
    assert sum(map(int, re.findall(r"\d+", counted))) == 40
    assert browser.evaluate("document.querySelectorAll('#bar span').length") >= 3
    assert "ms" in browser.evaluate("document.getElementById('f-ttft').textContent")


@pytest.mark.slow
def test_mistakes_and_keys_are_asked_for(
    browser: chromium.Chromium, start_gateway: Callable[..., GatewayProcess], tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text(KEY)
    browser.open(start_gateway("--api-key-file", str(file)).url + "/")
    browser.wait("!document.getElementById('keybox').hidden")
    browser.evaluate(f"document.getElementById('key').value = '{KEY}'")
    browser.wait("document.querySelectorAll('.lane').length >= 5")
    browser.evaluate("document.getElementById('temperature').value = '99'")
    browser.evaluate("document.getElementById('run').click()")
    browser.wait("document.body.dataset.state == 'failed'")
    assert "temperature" in browser.evaluate("document.getElementById('message').textContent")
