"""While large modules are imported no garbage is looked for, and afterwards not among what they made."""

from __future__ import annotations

import gc

import pytest

from sftprep.cli.importing import importing


@pytest.fixture
def unfrozen() -> object:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_nothing_is_collected_inside_and_what_is_there_at_the_end_is_never_searched_again() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("unfrozen")
def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError("no such module")
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
