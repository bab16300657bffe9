"""What a pack leaves out is listed whatever the rows hold (G4, M3)."""

from __future__ import annotations

import json
from pathlib import Path

from sftprep.config.pack import PackConfig
from sftprep.prepare.pack import pack

GOOD = {"messages": [{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "At six."}]}


def test_a_row_with_half_a_character_in_a_key_is_listed_and_the_others_are_packed_g4_m3(
    tmp_path: Path, samples: Path
) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in (GOOD, GOOD | {"x\ud800": "\ud800"}, GOOD)), encoding="utf-8"
    )
    model, out = str(samples / "model"), tmp_path / "o"
    result = pack(PackConfig(files=(path,), model=model, out=out, max_length=64, max_drop="1"))
    assert result.shards.manifest.left_out.num_rows == 1
    (entry,) = map(json.loads, (out / "left_out.jsonl").read_text(encoding="utf-8").splitlines())
    assert entry["line"] == 2
    assert "/x\ud800" in {finding["pointer"] for finding in entry["findings"]}
