"""What several of these files need."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def other_precision():
    """Lets a test have its own precision: accelerate allows one a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
