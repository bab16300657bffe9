"""The measures of quality over files: counted, ranked by how bad, shown by place."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sftprep.config.quality import QualityConfig
from sftprep.errors import OutputError, UsageError
from sftprep.prepare.quality import QualityReport, measure_quality
from sftprep.reports.quality_json import QUALITY_CODES
from sftprep.reports.quality_terminal import print_quality


def chat(prompt: str, answer: str, **row: object) -> str:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **row})


def write(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def measured(*files: Path, **options: object) -> QualityReport:
    return measure_quality(QualityConfig.model_validate({"files": files, **options}))


def prose(seed: int, count: int = 40) -> str:
    return " ".join(f"w{(seed * 7919 + i * 104729) % 99991}" for i in range(count))


def test_the_page_has_no_heading_of_examples_where_there_are_none(tmp_path: Path) -> None:
    rows = [chat(f"What is a {name}?", f"A {name} is {prose(seed, 9)}.") for seed, name in enumerate(["pier", "buoy"])]
    path, out = write(tmp_path / "f", *rows), tmp_path / "r.html"
    assert sftprep(path, "--quality", "--html", out, "-q").returncode == 0
    text = out.read_text(encoding="utf-8")
    assert "No example of any of these was found" in text
    assert "Examples, the worst first" not in text
    path.write_text(f"{path.read_text('utf-8')}{rows[0]}\n", encoding="utf-8")
    assert sftprep(path, "--quality", "--html", out, "-q").returncode == 0
    text = out.read_text(encoding="utf-8")
    assert "No example of any of these was found" not in text
    assert "Examples, the worst first" in text


def test_duplicates_are_counted_by_view_and_shown_by_place(tmp_path: Path) -> None:
    same = "The ferry leaves at nine from the north pier, and the last boat back is at six in the evening."
    path = write(
        tmp_path / "f",
        chat("When does the ferry leave from the pier today?", same),
        chat("An unlike question about bread and butter and jam?", same),
        chat("When does the ferry leave from the pier today?", prose(1)),
        chat("Something else entirely, about the price of rope?", same.replace("six", "seven")),
    )
    prompts, responses, conversations = measured(path).duplicates
    assert (prompts.num_texts, prompts.num_exact, prompts.num_near) == (4, 1, 1)
    assert (responses.num_exact, responses.num_near) == (1, 2)
    assert conversations.num_near == 0
    (cluster,) = responses.clusters
    assert cluster.size == 3
    assert [example.place for example in cluster.examples] == [f"{path}:1", f"{path}:4"]
    assert cluster.examples[0].excerpt.startswith("The ferry leaves at nine")
    assert "seven" in cluster.examples[1].excerpt


def test_flaws_are_ranked_by_share_and_examples_by_score(tmp_path: Path) -> None:
    rows = [chat(f"Question number {i} about {prose(i, 5)}?", f"{prose(i)}.") for i in range(10)]
    rows[3] = chat("How deep is it?", "I'm sorry, but I can't help with that.")
    rows[7] = chat("How wide is it?", f"I'm sorry, but I can't help with that. {prose(99, 200)}.")
    report = measured(write(tmp_path / "f", *rows))
    refusals = next(flaw for flaw in report.flaws if flaw.code == "refusal")
    assert (refusals.num_answers, refusals.num_judged, refusals.share) == (2, 10, 0.2)
    assert [e.place for e in refusals.examples] == [f"{tmp_path / 'f'}:{n}:/messages/1" for n in (4, 8)]
    assert refusals.examples[0].score > refusals.examples[1].score > 0
    assert [flaw.share for flaw in report.flaws] == sorted((flaw.share for flaw in report.flaws), reverse=True)
    assert report.by_code["refusal"] == 2


def test_openings_templates_and_stock_phrases_are_shown_with_their_size(tmp_path: Path) -> None:
    rows = [chat(f"Give me {i} words about Paris.", f"Certainly! Here is what I found: {prose(i)}.") for i in range(8)]
    diversity = measured(write(tmp_path / "f", *rows)).diversity
    assert diversity.openings.largest[0].size == 8
    assert diversity.openings.share == 1.0
    template = diversity.templates[0]
    assert (template.num_grouped, template.largest[0].size) == (8, 8)
    assert diversity.share_stock == 1.0
    assert {phrase.phrase for phrase in diversity.stock_phrases} >= {"certainly, of course, sure"}
    unigrams = diversity.distinct[0]
    assert unigrams.num_total > unigrams.num_distinct > 0


def test_leaks_name_both_addresses_and_the_worst_first(tmp_path: Path) -> None:
    shared = prose(5, 60)
    train = write(tmp_path / "train", chat("Alpha beta gamma?", prose(1)), chat(f"Recite: {shared}", "Done."))
    held = write(
        tmp_path / "eval",
        chat(f"Recite: {shared}", "Done."),
        chat("What else is new today?", f"{shared[:150]} {prose(8, 60)}"),
        chat("A question that nobody asked before now?", prose(9)),
    )
    leakage = measured(train, against=(held,)).leakage
    assert leakage is not None
    assert (leakage.num_held_out, leakage.ngram) == (3, 13)
    assert (leakage.num_overlapping, leakage.num_near_duplicates) == (2, 1)
    assert {(leak.what, leak.held_out, leak.training) for leak in leakage.leaks} == {
        ("ngrams", f"{held}:1", f"{train}:2"),
        ("prompts", f"{held}:1", f"{train}:2"),
        ("conversations", f"{held}:1", f"{train}:2"),
        ("ngrams", f"{held}:2", f"{train}:2"),
    }
    scores = [leak.score for leak in leakage.leaks]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0 > scores[-1] > 0
    clean = measured(train, against=(write(tmp_path / "other", chat("Nothing in common here at all?", prose(77))),))
    assert clean.leakage is not None
    assert clean.leakage.leaks == []


def test_a_short_row_that_is_held_out_too_leaks_and_a_common_short_question_does_not(tmp_path: Path) -> None:
    train = write(tmp_path / "train", chat("Two and two?", "Four."), chat("Go on.", "The tide is out."))
    held = write(tmp_path / "held", chat("two and two", "four!"), chat("Go on.", "Gulls are about."))
    leakage = measured(train, against=(held,)).leakage
    assert leakage is not None
    assert [(leak.what, leak.held_out, leak.training) for leak in leakage.leaks] == [
        ("conversations", f"{held}:1", f"{train}:1")
    ]


def test_of_several_matches_and_examples_the_worst_is_kept(tmp_path: Path) -> None:
    shared = prose(5, 60).split()
    held = write(tmp_path / "eval", chat(" ".join(shared), "Done."))
    lesser, greater = (chat(f"{' '.join(shared[:n])} {prose(n, 60)}", "Other.") for n in (20, 50))
    decline = "I'm sorry, but I can't help with that."
    rows = [lesser, greater, chat("Why?", f"{decline} {prose(3, 300)}."), chat("Who?", decline), chat("Us?", decline)]
    report = measured(path := write(tmp_path / "f", *rows), against=(held,), examples=1)
    refusals = next(flaw for flaw in measured(path, examples=3).flaws if flaw.code == "refusal")
    assert refusals.num_answers == 3
    assert [example.place for example in refusals.examples] == [f"{path}:{n}:/messages/1" for n in (4, 3)]
    assert report.leakage is not None
    assert [(leak.what, leak.training) for leak in report.leakage.leaks] == [("ngrams", f"{path}:2")]
    refusals = next(flaw for flaw in report.flaws if flaw.code == "refusal")
    assert [example.place for example in refusals.examples] == [f"{path}:4:/messages/1"]


def test_examples_of_a_group_show_where_they_differ_and_the_answer_that_is_meant(tmp_path: Path) -> None:
    frame = prose(1, 60)
    messages = [
        [
            {"role": "user", "content": f"{frame} {n}"},
            {"role": "assistant", "content": f"{prose(n + 50)}."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": f"We shall see about number {n}."},
        ]
        for n in range(6)
    ]
    report = measured(write(tmp_path / "f", *(json.dumps({"messages": own}) for own in messages)))
    first, last = report.duplicates[0].clusters[0].examples
    assert first.excerpt.startswith(frame[:40])
    assert last.excerpt.startswith("…")
    assert "5 And then?" in last.excerpt
    opening = report.diversity.openings.largest[0]
    assert [example.excerpt for example in opening.examples] == [f"We shall see about number {n}." for n in (0, 5)]


def test_sources_are_compared_where_rows_name_them(tmp_path: Path) -> None:
    rows = [chat(f"Q {i}?", f"Certainly! {prose(0)}.", origin="gpt") for i in range(6)]
    rows += [chat(f"R {i}?", f"{prose(i + 1)}.", origin="people") for i in range(4)]
    path = write(tmp_path / "f", *rows)
    report = measured(path, source_key="origin", human_sources=("people",))
    by_name = {line.source: line for line in report.sources}
    assert {name: (line.human, line.num_rows) for name, line in by_name.items()} == {
        "gpt": (False, 6),
        "people": (True, 4),
    }
    gaps = {gap.measure: gap for gap in report.gaps}
    assert gaps["share_stock"].synthetic == 1.0 > gaps["share_stock"].human == 0.0
    assert gaps["distinct_bigrams"].human > gaps["distinct_bigrams"].synthetic
    assert gaps["share_near_duplicates"].synthetic == pytest.approx(5 / 6)
    assert measured(path).sources == []


def test_rows_with_errors_are_counted_and_left_out(tmp_path: Path) -> None:
    report = measured(write(tmp_path / "f", chat("a b", "c d"), '{"messages": []}', chat("e f", "g h")))
    assert (report.num_rows, report.num_skipped, report.num_answers) == (2, 1, 2)
    leakage = measured(tmp_path / "f", against=(tmp_path / "f",)).leakage
    assert leakage is not None
    assert (leakage.num_held_out, leakage.num_skipped) == (2, 1)


def test_the_report_is_the_same_every_time_and_is_written_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "f", *[chat(f"Ask {i % 3} {prose(i % 3)}?", f"Sure! {prose(i % 4)}.") for i in range(30)])
    first = measured(path, json_file=tmp_path / "r.json")
    assert QualityReport.model_validate_json((tmp_path / "r.json").read_bytes()) == first == measured(path)
    with pytest.raises(OutputError):
        measured(path, json_file=tmp_path / "no" / "r.json")
    with pytest.raises(UsageError):
        measured(tmp_path / "missing")


def test_every_code_is_one_that_fail_on_knows(tmp_path: Path) -> None:
    path = write(tmp_path / "f", chat("a b", "c d"))
    assert measured(path, against=(path,)).by_code.keys() == QUALITY_CODES


def sftprep(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sftprep", "validate", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_measures_when_asked_and_fails_on_the_codes_that_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f", chat("How deep is it?", "I'm sorry, but I can't help with that."), chat("Hi!", "Hello.")
    )
    report = tmp_path / "q.json"
    done = sftprep(path, "--quality-json", report, "--against", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "quality of 2 rows" in done.stdout
    assert QualityReport.model_validate_json(report.read_bytes()).by_code["refusal"] == 1
    told = {"json": tmp_path / "v.json", "html": tmp_path / "v.html"}
    outputs = [part for name, place in told.items() for part in (f"--{name}", place)]
    failed = sftprep(path, "--quality", "--fail-on", "refusal", "-q", *outputs)
    assert (failed.returncode, "fails on refusal: 1" in failed.stdout) == (1, True)
    assert not json.loads(told["json"].read_text())["passed"]
    assert "<title>Validation: failed" in told["html"].read_text(encoding="utf-8")
    assert sftprep(path, "--quality", "--fail-on", "wrong-language", "-q").returncode == 0
    assert "quality of" not in sftprep(path).stdout
    unasked = sftprep(path, "--fail-on", "refusal")
    assert unasked.returncode == 2
    assert "--quality" in unasked.stderr


def test_standard_input_is_refused_as_it_is_read_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        measured(Path("-"))


def test_the_terminal_shows_counts_and_places_and_leaves_brackets_alone(tmp_path: Path) -> None:
    rows = [chat(f"[bold] tell {i}?", f"[/red] Certainly! {prose(0)}.") for i in range(6)]
    console = Console(width=120, record=True, file=(tmp_path / "log").open("w"))
    print_quality(measured(write(tmp_path / "f", *rows)), console)
    text = console.export_text()
    assert f"{tmp_path / 'f'}:1" in text.replace("\n", "")
    assert "[/red] Certainly!" in text
    assert "quality of 6 rows, 6 answers" in text


def test_reports_say_of_each_detector_what_the_readme_says_was_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "f", chat("Why?", "I'm sorry, but I can't help with that."))
    readme = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text(encoding="utf-8")
    reach = {flaw.code: flaw.reach for flaw in measured(path).flaws}
    for code in ("refusal", "truncated-ending", "leaked-instructions", "repeats-prompt", "wrong-language"):
        met = readme.partition(f"| `{code}` | ")[2].partition(" |")[0]
        assert re.findall(r"\d+ of \d+", reach[code]) == met.split(", "), code
    assert "of 7 unsupported answers among 26" in reach["ungrounded"]
    assert "of 26 answers" in readme
    console = Console(width=200, record=True, file=(tmp_path / "log").open("w"))
    print_quality(measured(path), console)
    assert reach["refusal"] in console.export_text()
    assert sftprep(path, "--quality", "--html", tmp_path / "r.html", "-q").returncode == 0
    assert reach["refusal"] in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_rows_without_a_source_are_said_to_be_by_nobody_known(tmp_path: Path) -> None:
    rows = [chat(f"q {i}", prose(i), **({} if i % 3 else {"source": "human"})) for i in range(9)]
    console = Console(width=200, record=True, file=(tmp_path / "log").open("w"))
    print_quality(measured(write(tmp_path / "f", *rows)), console)
    lines = [line for line in console.export_text().splitlines() if line.startswith(("│ (none)", "│ human"))]
    assert [[cell.strip() for cell in line.split("│")[1:3]] for line in lines] == [
        ["(none)", "not said"],
        ["human", "human"],
    ]


def test_thresholds_come_from_a_file_and_wrong_ones_are_named_before_anything_is_read(tmp_path: Path) -> None:
    loop = "We sail at dawn when the tide is in. " + "Row on, row on. " * 6 + prose(4, 70)
    path = write(tmp_path / "f", chat("When?", f"{loop}."))
    thresholds = tmp_path / "t.toml"
    counts = {}
    for share in (0.1, 0.9):
        thresholds.write_text(f"loop_share = {share}\nexamples = 1\n")
        done = sftprep(path, "--quality-config", thresholds, "--quality-json", tmp_path / "q.json", "-q")
        assert (done.returncode, done.stderr) == (0, "")
        counts[share] = QualityReport.model_validate_json((tmp_path / "q.json").read_bytes()).by_code
    assert (counts[0.1]["repetition-loop"], counts[0.9]["repetition-loop"]) == (1, 0)
    wrong = {"loop_shares = 0.1": "loop_shares", "loop_share = 2": "less than or equal to 1", "loop_share": "TOML"}
    for text, named in {**wrong, 'files = ["x"]': "files"}.items():
        thresholds.write_text(text)
        done = sftprep(path, "--quality-config", thresholds)
        assert (done.returncode, done.stdout) == (2, "")
        assert named in done.stderr
        assert "bad-option" in done.stderr
    missing = sftprep(path, "--quality-config", tmp_path / "none.toml")
    assert (missing.returncode, "missing-file" in missing.stderr) == (2, True)


def test_the_page_shows_every_ranking_with_its_examples_and_no_markup_of_the_data(tmp_path: Path) -> None:
    rows = [
        chat(f"<i>tell</i> me of {i}?", f"<script>x</script> Certainly! {prose(0)}", source="gpt") for i in range(6)
    ]
    rows += [chat("Why?", "I'm sorry, but I can't help with that.", source="human")]
    path, out = write(tmp_path / "f", *rows), tmp_path / "r.html"
    assert sftprep(path, "--quality", "--against", path, "--html", out, "-q").returncode == 0
    text = out.read_text(encoding="utf-8")
    report = measured(path, against=(path,))
    for flaw in report.flaws:
        assert f">{flaw.code}</text>" in text
        assert flaw.num_answers == 0 or f"{flaw.code}: " in text
    shown = [example.place for flaw in report.flaws for example in flaw.examples]
    shown += [example.place for found in report.duplicates for group in found.clusters for example in group.examples]
    assert len(shown) > 5
    assert all(f"<code>{place}</code>" in text for place in shown)
    near = [found for found in report.duplicates if found.clusters]
    titles = [f"largest clusters of {found.view} ({found.num_near:,} near" for found in near]
    assert len(near) >= 1
    assert all(f"<summary>{title}" in text for title in (*titles, "answers, common opening", "prompts, template"))
    assert "Leakage into held-out rows" in text
    assert "<td>human</td>" in text
    assert "<script>x" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;x" in text
    assert sftprep(path, "--html", out, "-q").returncode == 0
    assert 'id="quality"' not in out.read_text(encoding="utf-8")
