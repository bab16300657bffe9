"""The look that the pages of validate and evaluate share: colours for light and dark, text, tables, plots, folds."""

from __future__ import annotations

from typing import Final

STYLE: Final = """:root { color-scheme: light dark; --ink: #1c2330; --page: #fbfbf9; --card: #fff; --line: #d9dce3;
  --soft: #5a6475; --error: #b3261e; --warning: #9a6b00; --fine: #1d6b38; --new: #2f62b3; --old: #9aa5b5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --page: #14171c; --card: #1c2128; --line: #343b46;
  --soft: #9aa5b5; --error: #ff8a80; --warning: #e0b455; --fine: #7fd196; --new: #85aef0; --old: #5a6475; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } summary { cursor: pointer; padding: .2rem 0; }
.error { color: var(--error); } .warning { color: var(--warning); } .fine { color: var(--fine); }
.soft { color: var(--soft); }
svg { max-width: 100%; height: auto; } svg text { font: 13px ui-monospace, monospace; fill: var(--ink); }
svg rect.error { fill: var(--error); } svg rect.warning { fill: var(--warning); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
pre { margin: .4rem 0 0; padding: .5rem .7rem; background: var(--page); border-radius: .4rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; }"""
