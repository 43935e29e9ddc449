import random

import pytest


@pytest.fixture(autouse=True)
def reproducible():
    """The client begins with a random seq."""
    random.seed(1)
