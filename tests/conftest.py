"""What every test may ask for: the shared corpus (or a skip by name) and the repository's own samples."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# What an example takes says how busy the machine is, and nothing of the code: Hypothesis would allow it 0.2 seconds.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real chats, tokenizers and templates; the test is skipped where it is not."""
    path = ROOT.parent / "shared" / "corpus"
    if not path.is_dir():
        pytest.skip("../shared/corpus is not on this machine")
    return path


@pytest.fixture(scope="session")
def samples() -> Path:
    """The repository's own small chats, tokenizer and template."""
    return ROOT / "data_samples"


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs note for later runs is gone with the tests, and none reads another's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
