"""From a model's answer to a program."""
import pytest

from evaluation.completion import complete_c_function, complete_function, cut_at_stops, fenced_code, program_of_answer

PROMPT = "def double(x):"


@pytest.mark.parametrize("text, expected", [
    ("\n    return 2 * x\n\n\ndef other():\n    pass\n", "def double(x):\n    return 2 * x\n"),
    ("\n    return 2 * x\nprint(double(1))\n", "def double(x):\n    return 2 * x\n"),
    ("\n    y = [\n        1,\n    ]\n    return y\n", "def double(x):\n    y = [\n        1,\n    ]\n    return y\n"),
    ("\n\n    # twice\n    return 2 * x", "def double(x):\n\n    # twice\n    return 2 * x\n"),
])
def test_a_function_ends_where_it_is_left(text, expected):
    assert complete_function(PROMPT, text, cut_off=False) == expected


def test_what_the_limit_cut_off_is_left_away_and_nothing_else_is():
    text = "\n    y = 2 * x\n    return max(y,"
    assert complete_function(PROMPT, text, cut_off=True) == "def double(x):\n    y = 2 * x\n"
    assert complete_function(PROMPT, text, cut_off=False).endswith("max(y,\n")


def test_a_c_function_ends_with_its_brace():
    prompt = "int f(int a) {\n    // {\n"
    text = '    if (a) { puts("}"); }\n    return \'}\';\n}\nint g() { return 0; }\n'
    assert complete_c_function(prompt, text) == prompt + '    if (a) { puts("}"); }\n    return \'}\';\n}\n'


def test_stops_are_cut_at_the_first():
    assert cut_at_stops("a\nclass B\ndef c", ["\ndef", "\nclass"]) == "a"
    assert cut_at_stops("abc", ["\ndef"]) == "abc"


@pytest.mark.parametrize("answer, expected", [
    ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
    ("```\na\n```\nand\n```py\nlonger = 2\n```", "longer = 2\n"),
    ("```python\ncut = 1\n", "cut = 1\n"),
    ("~~~python\ny = 1\n~~~", "y = 1\n"),
    ("no fence", "no fence"),
])
def test_fenced_code(answer, expected):
    assert fenced_code(answer) == expected


WHOLE = "import os\n\n\ndef size(path):\n    return os.stat(path).st_size\n"
ANNOTATED = "def size(path: str) -> int:\n    return os.stat(path).st_size\n"


@pytest.mark.parametrize("code, expected", [
    (WHOLE, WHOLE),
    (ANNOTATED, "import os\n\n\n" + ANNOTATED),
    # The body alone.
    ("    return os.stat(path).st_size", "import os\n\n\ndef size(path):    return os.stat(path).st_size\n"),
    ("\n    return os.stat(path).st_size", WHOLE),
])
def test_an_answer_becomes_one_program(code, expected):
    assert program_of_answer("import os\n\n\n", "def size(path):", f"```python\n{code}\n```" if "def" in code else code, "py") == expected


def test_a_call_of_the_function_is_not_its_definition():
    found = program_of_answer("", "def fact(n):", "\n    return n * fact(n - 1) if n else 1\n", "py")
    assert found.startswith("def fact(n):\n    return")
