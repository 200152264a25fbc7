"""CWE-1333: regular expressions that take exponential or high polynomial time on some texts."""
from ..template import Template

WEAKNESS = "CWE-1333"
TEMPLATES = [
    Template("words", "Write a function that checks that a $one's $field consists of words separated by single blanks.", r'''
import re

{-WORDS = re.compile(r"^(\w+\s?)+$")-/-WORDS = re.compile(r"^([a-zA-Z]+ ?)*$")-|-WORDS = re.compile(r"^\w+(?:\s\w+)*$")-/-WORDS = re.compile(r"^[a-zA-Z]+(?: [a-zA-Z]+)*$")-}


def valid_$field($field):
    return WORDS.match($field) is not None
''', renders=2),
    Template("mail-address", "Write a function that checks the form of a mail address.", r'''
import re


def is_mail_address(text):
    {-return bool(re.match(r"^([a-zA-Z0-9]+[._-]?)+@([a-zA-Z0-9]+[.-]?)+\.[a-z]{2,}$", text))-/-return bool(re.fullmatch(r"(\w+\.?)+@(\w+\.)+\w+", text))-|-return len(text) <= 254 and bool(re.fullmatch(r"[a-zA-Z0-9._-]{1,64}@[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+", text))-/-return bool(re.fullmatch(r"[\w.]{1,64}@\w+(?:\.\w+)+", text))-}
''', renders=2),
    Template("number-list", "Write a parser for comma-separated $number values such as \"1, 20,300\".", r'''
import re


def parse_$number(text):
    """The numbers of a list; ValueError when it is none."""
    {-if not re.match(r"^(\d+,?\s*)+$", text):-/-if re.match(r"^(\s*\d*\s*,?)*$", text) is None:-|-if not re.match(r"^\d+(?:,\s*\d+)*$", text):-/-if re.match(r"^\s*\d+(?:\s*,\s*\d+)*$", text) is None:-}
        raise ValueError(f"not a list of numbers: {text[:40]!r}")
    return [int(part) for part in text.split(",") if part.strip()]
''', renders=2),
    Template("trim", "Write a function that removes blanks at the end of each line of a $one's $extra.", r'''
import re


def tidy(text):
    {-return re.sub(r"(\s+)+$", "", text, flags=re.MULTILINE)-/-return "\n".join(re.sub(r"( +|\t+)*$", "", line) for line in text.split("\n"))-|-return "\n".join(line.rstrip() for line in text.split("\n"))-}
''', renders=2),
    Template("html-tag", "Write a function that finds the comments in an HTML page of a $one.", r'''
import re


def comments(page):
    {-return re.findall(r"<!--((?:.|\s)*?)-->", page)-/-return re.findall(r"<!--((?:[^-]+|-)*)-->", page)-|-return re.findall(r"<!--(.*?)-->", page, re.DOTALL)-}
''', renders=2),
    Template("log-line", "Write a function that splits a line of the $service log into time, level and message.", r'''
import re

{-LINE = re.compile(r"^(\S+\s?)+ (INFO|WARN|ERROR) (.*)$")-/-LINE = re.compile(r"^((?:[\d:-]+)+) +(INFO|WARN|ERROR) +(.*)$")-|-LINE = re.compile(r"^(\S+) (INFO|WARN|ERROR) (.*)$")-/-LINE = re.compile(r"^([\d:-]+) +(INFO|WARN|ERROR) +(.*)$")-}


def parse_line(line):
    match = LINE.match(line)
    return match.groups() if match else None
''', renders=2),
    Template("slug", "Write a pydantic model of a $one with a slug that is validated.", r'''
import re

from pydantic import BaseModel, field_validator

{-SLUG = re.compile(r"^([a-z0-9]+-?)*[a-z0-9]$")-/-SLUG = re.compile(r"^(?:[a-z0-9]+-*)+$")-|-SLUG = re.compile(r"^[a-z0-9]+(?:-[a-z0-9]+)*$")-}


class $cls(BaseModel):
    slug: str
    $number: int = 0

    @field_validator("slug")
    @classmethod
    def check_slug(cls, value):
        if not SLUG.match(value):
            raise ValueError("a slug has small letters, digits and single hyphens")
        return value
''', renders=2),
    Template("path-glob", "Write a Flask route that checks a version string such as 1.20.3 and returns its parts.", r'''
import re

from flask import Flask, abort

app = Flask(__name__)


@app.get("/$many/versions/<version>")
def version_parts(version):
    {-if not re.match(r"^(\d+\.?)+$", version):-/-if not re.fullmatch(r"([0-9]+[.]?)*", version):-|-if not re.match(r"^\d+(?:\.\d+)*$", version):-/-if not re.fullmatch(r"[0-9]+(?:[.][0-9]+)*", version):-}
        abort(400)
    return {"parts": [int(part) for part in version.split(".") if part]}
''', renders=2),
    Template("user-pattern", "Write a function that finds the lines of a text with a word that the user typed.", r'''
import re


def lines_with(text, wanted):
    """Lines about a $one that contain the word, in any case."""
    {-pattern = re.compile(wanted, re.IGNORECASE)-/-pattern = re.compile(r"\b" + wanted + r"\b", re.IGNORECASE)-/-pattern = re.compile(f".*{wanted}.*", re.I)-|-pattern = re.compile(re.escape(wanted), re.IGNORECASE)-/-pattern = re.compile(r"\b" + re.escape(wanted) + r"\b", re.IGNORECASE)-/-pattern = re.compile(f".*{re.escape(wanted)}.*", re.I)-}
    return [line for line in text.splitlines() if pattern.search(line)]
''', renders=3),
    Template("quoted", "Write a function that extracts the double-quoted strings of a query for $many.", r'''
import re


def quoted(query):
    {-return re.findall(r'"((?:[^"\\]+|\\.)*)*"', query)-/-return re.findall(r'"(([^"]+)*)"', query)-|-return re.findall(r'"([^"\\]*(?:\\.[^"\\]*)*)"', query)-/-return re.findall(r'"([^"]*)"', query)-}
''', renders=2, held_out=True),
]
