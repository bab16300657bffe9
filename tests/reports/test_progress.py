"""The bar of bytes tells no rate that is none of the work."""

from __future__ import annotations

import io

from rich.console import Console

from sftprep.reports.progress import byte_bar


def test_the_rate_is_that_of_the_work_and_not_of_what_an_earlier_run_left() -> None:
    """4.5 GB at once, as chunks that are done already are read, then 200 kB a second."""
    now = 0.0
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    bar = byte_bar(console, get_time=lambda: now)
    task = bar.add_task("[pack]", total=5_000_000_000)
    shown = {}
    for tick in range(200):
        for _ in range(45 if tick == 0 else 1):
            bar.advance(task, 100_000_000 if tick == 0 else 20_000)
        now += 0.1
        with console.capture() as written:
            console.print(bar.get_renderable())
        shown[tick] = written.get()
    assert "[pack]" in shown[0]
    assert "4.5/5.0 GB" in shown[0]
    assert not [tick for tick, line in shown.items() if "GB/s" in line or "MB/s" in line]
    assert not [tick for tick, line in shown.items() if tick < 109 and "/s" in line]
    assert "kB/s" in shown[150]
    assert "0:41:" in shown[199], shown[199]  # half a gigabyte at 200 kB a second
