"""The mask audit as one self-contained page: no network, everything escaped, readable in light and dark."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import jinja2

from sftprep.data import IGNORE_INDEX
from sftprep.reports.mask_json import AuditReport
from sftprep.reports.mask_view import HIDDEN, ROLES, PromptView, RowView, SpanView, visible
from sftprep.reports.publication import publishing
from sftprep.reports.wording import counted

_ROLE_ORDER: Final = ("template", "system", "user", "tool", "assistant")
_SHOWN_SOURCES: Final = 12
_MARKUP: Final = re.compile("[<>&]")


def page_html(report: AuditReport, rows: Sequence[RowView]) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sources = sorted(report.sources, key=lambda source: -source.num_tokens)[:_SHOWN_SOURCES]
    return environment.from_string(_asset("page.html")).render(
        report=report,
        cards=_cards(report),
        sources=sources,
        largest=max([1, *(source.num_tokens for source in sources)]),
        roles=_ROLE_ORDER,
        num_rows=sum(bool(row.spans) for row in rows),
        data=_script_json(_data(report, rows)),
        css=_asset("page.css"),
        js=_asset("page.js"),
    )


def notebook_html(page: str) -> str:
    """The page in a frame."""
    return f'<iframe title="Mask audit" style="width:100%;height:760px;border:0" srcdoc="{html.escape(page)}"></iframe>'


def write_page(page: str, path: Path) -> None:
    """Write the page, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(page.encode("utf-8"))


def _asset(name: str) -> str:
    return (files("sftprep.reports") / "mask_page" / name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that a script element may hold whatever its texts say: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for pattern in (_MARKUP, HIDDEN):
        text = pattern.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    # A lone surrogate cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def _cards(report: AuditReport) -> list[tuple[str, str]]:
    return [
        _card(report.num_tokens, "token"),
        (f"{report.num_trained:,}", f"trained ({report.trained_share:.1%})"),
        _card(report.scaffold_tokens_in_loss, "template token", " in the loss"),
        _card(report.num_turns, "trained turn"),
        _card(report.num_documents, "document", f", {report.documents_a_row:.1f} a row"),
        _card(report.num_rows, "row", f" of {report.max_length:,}, {report.row_fill:.1%} full"),
        (f"{report.num_left_out:,}", f"of {counted(report.num_taken, 'row')} left out"),
    ]


def _card(number: int, what: str, rest: str = "") -> tuple[str, str]:
    """The number and what it counts."""
    shown, _, told = counted(number, what).partition(" ")
    return shown, told + rest


def _data(report: AuditReport, rows: Sequence[RowView]) -> dict[str, Any]:
    return {
        "directory": report.directory,
        "ignore_index": IGNORE_INDEX,
        "rows": [{"index": row.index, "chosen": row.chosen, "documents": _documents(row)} for row in rows],
    }


def _documents(row: RowView) -> list[dict[str, Any]]:
    number = 1 + max((span.document for span in row.spans), default=-1)
    spans = [[span for span in row.spans if span.document == document] for document in range(number)]
    prompts = [[p for p in row.prompts if p.document == document] for document in range(number)]
    return [_document(*parts) for parts in zip(spans, prompts, strict=True)]


def _document(spans: Sequence[SpanView], prompts: Sequence[PromptView]) -> dict[str, Any]:
    tokens = [token for span in spans for token in span.tokens]
    return {
        "origin": visible(spans[0].origin),
        "file": visible(spans[0].origin.rpartition(":")[0]),
        "num_tokens": sum(len(token.ids) for token in tokens),
        "num_trained": sum(len(token.ids) for token in tokens if token.trained),
        "spans": [_span(span) for span in spans],
        "prompts": [_prompt(prompt) for prompt in prompts],
    }


def _span(span: SpanView) -> dict[str, Any]:
    turn = f":message {span.message}" if span.message >= 0 else ""
    return {
        "kind": span.kind.name.lower(),
        "role": ROLES.get(span.kind, "template"),
        "message": span.message,
        "reason": span.reason,
        "origin": visible(span.origin) + turn,
        "tokens": [
            {
                "ids": token.ids,
                "text": token.text,
                "shown": visible(token.text),
                "weight": token.weight,
                "position": token.position,
                "trained": token.trained,
                "special": token.special,
            }
            for token in span.tokens
        ],
    }


def _prompt(prompt: PromptView) -> dict[str, Any]:
    return {
        "message": prompt.message,
        "num_tokens": prompt.num_tokens,
        "state": prompt.state,
        "position": prompt.position,
        "server": [visible(text) for _, text in prompt.server],
    }
