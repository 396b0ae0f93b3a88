"""Every test of this room has the gates and losses of `training_cases`."""

import pytest


@pytest.fixture(autouse=True)
def with_workbench(workbench: None) -> None: ...
