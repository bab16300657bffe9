"""The audit page in a real browser: it renders, filters, hovers, works by keyboard, asks no network, runs no data."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.prepare.audit import Audit, audit
from sftprep.prepare.pack import pack

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!-- \u2028 \u202e & {{ 7*7 }}"


@pytest.fixture(scope="module")
def found(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """A proven set with hostile text in it, of which one prompt token and one mask are wrong."""
    folder = tmp_path_factory.mktemp("page")
    rows = [{"prompt": f"close {HOSTILE}", "response": f"潮 {HOSTILE}"}]
    source = folder / "hostile<b>.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    files = (source, *sorted((samples / "good").glob("*.jsonl")))
    out = pack(PackConfig(files=files, model=str(samples / "model"), out=folder / "set", max_length=512)).shards
    path = out.directory / out.manifest.shards[0].file
    table = pq.read_table(path)
    damaged = table.to_pylist()
    damaged[1]["input_ids"][1] = 65
    damaged[2]["assistant_masks"][:2] = [1, 1]
    pq.write_table(pa.Table.from_pylist(damaged, schema=table.schema), path)
    config = AuditConfig(
        directory=out.directory, html=folder / "page.html", prove=True, checksums=False, html_rows=out.num_rows
    )
    return audit(config)


@pytest.fixture(scope="module")
def page_text(found: Audit) -> str:
    assert found.config.html is not None
    return found.config.html.read_text(encoding="utf-8")


def page_data(text: str) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert block
    return dict(json.loads(block[1]))


def test_no_text_of_the_data_reaches_the_page_as_markup(page_text: str) -> None:
    assert page_text.count("</script>") == 2, "the page's own two"
    block = re.search(r'id="data">(.*?)</script>', page_text, re.DOTALL)
    assert block
    assert not set(block[1]) & set("<>&\u2028\u2029\u202e"), "whatever a token says, it cannot end the element"
    assert "<img" not in page_text
    assert "<!--" not in page_text
    assert "<b>.jsonl" not in page_text
    assert "‹U+202E›" in page_text


def test_the_page_asks_no_network(page_text: str) -> None:
    outside = re.sub(r'<script type="application/json".*?</script>', "", page_text, flags=re.DOTALL)
    assert not re.search(r"https?://|src=|@import|url\(", outside)
    assert "default-src 'none'" in outside


def test_every_token_of_the_shown_rows_is_there_with_its_label(found: Audit, page_text: str) -> None:
    data = page_data(page_text)
    documents = [doc for row in data["rows"] for doc in row["documents"]]
    assert sum(doc["num_tokens"] for doc in documents) == found.report.num_tokens
    assert sum(doc["num_trained"] for doc in documents) == found.report.num_trained
    assert any(HOSTILE in "".join(t["text"] for s in doc["spans"] for t in s["tokens"]) for doc in documents)
    contradicted = [s["reason"] for doc in documents for s in doc["spans"] if "against its reason" in s["reason"]]
    assert contradicted == ["trained against its reason (not trained: the template writes it)"]


def test_a_notebook_shows_the_page_in_a_frame(found: Audit) -> None:
    shown = found._repr_html_()
    assert shown.startswith("<iframe")
    assert "&lt;!doctype html&gt;" in shown
    assert shown.count("<") == 2, "all of the page is inside an attribute"


@pytest.fixture(scope="module")
def browser_page(found: Audit) -> Iterator[Any]:
    """The page open in Chromium; anything on the console, or any request but its own file, fails the test."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    told: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url))
        assert found.config.html is not None
        page.goto(found.config.html.as_uri())
        yield page
        assert set(told) == {found.config.html.as_uri()}
        assert page.title().startswith("Mask audit of")
        browser.close()


def shown_count(page: Any) -> int:
    return int(page.inner_text("#shown").split()[0])


@pytest.fixture
def page(browser_page: Any) -> Any:
    browser_page.reload()
    return browser_page


def test_it_renders_all_documents_and_the_first_sample(page: Any, found: Audit) -> None:
    assert shown_count(page) == found.report.num_documents
    assert page.locator("#list [role=option][aria-selected=true]").count() == 1
    assert page.locator("#text .chip.t").count() > 0
    assert page.locator("figure svg").count() >= 5
    assert "scaffold-trained" in page.inner_text("main")


def test_it_opens_at_its_top(page: Any) -> None:
    assert page.evaluate("scrollY") == 0


def test_filters_by_text_file_role_length_and_finding(page: Any, found: Audit) -> None:
    everything = found.report.num_documents
    page.fill("#search", "onerror")
    assert shown_count(page) == 1
    assert "hostile<b>.jsonl:1" in page.inner_text("#title")
    page.fill("#search", "")
    page.select_option("#role", "tool")
    with_tools = shown_count(page)
    assert 0 < with_tools < everything
    page.select_option("#role", "")
    page.fill("#least", "100")
    long = shown_count(page)
    page.fill("#most", "200")
    assert 0 < shown_count(page) < long < everything
    page.fill("#least", "")
    page.fill("#most", "")
    for code in ("scaffold-trained", "border-trained", "scalar-mismatch"):
        page.select_option("#code", code)
        assert "row 2 · document 0" in page.inner_text("#list"), "a row of several faults is found by each"
    page.select_option("#code", "prompt differs")
    assert "row 1 · document 0" in page.inner_text("#list")
    assert "row 2" not in page.inner_text("#list")
    page.select_option("#code", "")
    page.select_option("#file", index=1)
    assert 0 < shown_count(page) < everything
    page.fill("#search", "no document says this")
    assert shown_count(page) == 0
    assert page.locator("#sample").is_hidden()


def test_hovering_over_a_token_tells_why(page: Any) -> None:
    page.fill("#search", "onerror")
    page.locator("#text .chip.t", has_text="潮").hover()
    detail = page.inner_text("#detail")
    assert "trained: the model must write it" in detail
    assert "e6 bd ae" in detail, "its bytes"
    assert "hostile<b>.jsonl:1:message 1" in detail
    page.locator("#text .chip.u").first.hover()
    assert "-100" in page.inner_text("#detail")


def test_it_works_by_keyboard_alone(page: Any) -> None:
    first = page.inner_text("#title")
    page.keyboard.press("j")
    second = page.inner_text("#title")
    page.keyboard.press("k")
    assert page.inner_text("#title") == first != second
    page.keyboard.press("/")
    page.keyboard.type("onerror")
    page.keyboard.press("Escape")
    assert shown_count(page) == 1
    page.keyboard.press("t")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".chip.at").inner_text() == page.locator("#text .chip").nth(2).inner_text()
    page.keyboard.press("n")
    assert "trained: the model must write it" in page.inner_text("#spoken")
    page.keyboard.press("End")
    page.keyboard.press("l")
    assert page.evaluate("document.activeElement.id") == "list"


def test_the_servers_prompt_stands_beside_the_row_with_the_first_difference_marked(page: Any) -> None:
    where = page.evaluate("documents.findIndex((d) => d.doc.prompts.some((p) => p.state === 'differing'))")
    page.evaluate(f"select(documents[{where}])")
    assert "row 1 · document 0" in page.inner_text("#title")
    assert page.inner_text("#verdict") == "The first token that differs is number 1."
    cells = page.locator("#aligned tr.diff").first.locator("td").all_inner_texts()
    assert cells[0] == "1"
    assert cells[1] != cells[2]
    assert page.locator("#aligned tr.diff").count() == 1, "of what follows, only what differs too"
    assert page.locator("#aligned tr").count() > 5


def test_an_address_opens_its_document(page: Any) -> None:
    page.evaluate("location.hash = '#row-3-doc-1'")
    page.wait_for_function("document.querySelector('#title').innerText.includes('row 3 · document 1')")


def test_every_control_has_a_name_for_screen_readers(page: Any) -> None:
    for control in page.locator("input, select, [role=listbox], [role=region]").all():
        named = control.get_attribute("aria-label") or control.evaluate("node => node.labels?.length")
        assert named, control.get_attribute("id")
    assert all(svg.get_attribute("aria-label") for svg in page.locator("figure > svg").all())
