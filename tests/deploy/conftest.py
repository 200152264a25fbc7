"""Hands each overlay to the tests, rendered once, and knows their option."""

import functools

import pytest
from rendered import OVERLAYS, Overlay

render = functools.cache(Overlay)


def pytest_addoption(parser):
    parser.addoption("--compile", action="store_true", help="run the Dockerfile's stages that compile: half an hour")


@pytest.fixture(params=OVERLAYS)
def overlay(request) -> Overlay:
    """One of the overlays."""
    return render(request.param)


@pytest.fixture(scope="session")
def production() -> Overlay:
    """The overlay that has everything."""
    return render("production")
