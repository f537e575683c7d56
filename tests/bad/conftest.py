"""The desk at which the tests of bad input ask their questions."""

import pytest
from damage import Desk


@pytest.fixture
def desk(capfd, tmp_path):
    """Where commands are asked; afterwards there must be no complaint, and no code of a file may have run."""
    desk = Desk(capfd, tmp_path / "code-was-run")
    yield desk
    assert not desk.complaints, "\n".join([f"{len(desk.complaints)} of {desk.cases} cases", *desk.complaints])
    assert desk.cases
