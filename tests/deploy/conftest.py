"""Hands each overlay to the tests, rendered once."""

import functools

import pytest
from rendered import OVERLAYS, Overlay

render = functools.cache(Overlay)


@pytest.fixture(params=OVERLAYS)
def overlay(request) -> Overlay:
    """One of the overlays."""
    return render(request.param)


@pytest.fixture(scope="session")
def production() -> Overlay:
    """The overlay that has everything."""
    return render("production")
