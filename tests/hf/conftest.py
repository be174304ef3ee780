"""Tests that take every family take it from here."""

import pytest

from jaxrlhf.hf.families import FAMILIES


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]
