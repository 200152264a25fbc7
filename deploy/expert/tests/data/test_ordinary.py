"""Our own ordinary code: it parses, its examples hold, and it is read whole."""

import doctest
import importlib.util

from cosec_expert import ordinary

FOLDER = ordinary.usual_sources()[0]


def test_examples_in_docstrings_hold():
    specification = importlib.util.spec_from_file_location("exercises", FOLDER / "exercises.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted > 30


def test_most_functions_are_snippets():
    names = [snippet.id for snippet in ordinary.read([FOLDER])]
    assert len(names) > 40 and len(set(names)) == len(names)
