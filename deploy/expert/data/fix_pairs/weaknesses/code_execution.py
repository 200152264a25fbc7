"""CWE-094 and CWE-095: text from users that is run as code."""
from ..template import Template

WEAKNESS = "CWE-094"
TEMPLATES = [
    Template("transform", "Write a function that applies a list of named text transformations from a job description to a $one's $field.", r'''
TRANSFORMS = {"upper": str.upper, "lower": str.lower, "strip": str.strip, "title": str.title}


def apply_transforms(text, steps):
    for step in steps:
        {-text = eval(f"text.{step}()")-/-text = eval("str." + step)(text)-|-if step not in TRANSFORMS:
            raise ValueError(f"unknown step {step!r}")
        text = TRANSFORMS[step](text)-/-text = TRANSFORMS[step](text)-}
    return text
''', renders=2),
    Template("literal", "Write a function that turns a text such as \"[1, 2, 3]\" from a form into a Python list of $number values.", r'''
import ast


def parse_$number(text):
    """The list that a user typed."""
    {-values = eval(text)-/-values = eval(text, {}, {})-|-values = ast.literal_eval(text)-}
    if not isinstance(values, {?list-/-(list, tuple)?}):
        raise TypeError("expected a list")
    return [int(value) for value in values]
'''),
    Template("dispatch", "Write a Flask endpoint that runs a named action on the list of $many and returns the result.", r'''
from flask import Flask, abort, request

app = Flask(__name__)


def total($many):
    return sum(item["$number"] for item in $many)


def largest($many):
    return max(item["$number"] for item in $many)


ACTIONS = {"total": total, "largest": largest}


@app.post("/$many/actions")
def act():
    action = request.json["action"]
    {-return {"result": eval(f"{action}(app.$many)")}-/-return {"result": eval(action)(app.$many)}-/-return {"result": globals()[action](app.$many)}-|-if action not in ACTIONS:
        abort(400)
    return {"result": ACTIONS[action](app.$many)}-}
'''),
    Template("filter-rule", "Write a function that keeps the $many which satisfy a rule of the form (field, operator, value) from a user's filter.", r'''
import operator

COMPARISONS = {"<": operator.lt, ">": operator.gt, "==": operator.eq}


def matching($many, field, comparison, value):
    {-return [item for item in $many if eval(f"item[{field!r}] {comparison} {value!r}")]-/-rule = compile(f"item['{field}'] {comparison} {value!r}", "<rule>", "eval")
    return [item for item in $many if eval(rule, {"item": item})]-|-compare = COMPARISONS[comparison]
    return [item for item in $many if compare(item[field], value)]-}
''', renders=2),
    Template("config-exec", "Write a function that reads the settings of the $service service from a file.", r'''
import configparser
import json


def load_settings(path):
    {-settings = {}
    with open(path) as file:
        exec(file.read(), settings)
    return settings-/-with open(path) as file:
        return eval(file.read())-|-with open(path) as file:
        settings = json.load(file)
    return settings-/-parser = configparser.ConfigParser()
    parser.read(path)
    return dict(parser["$service"])-}
''', renders=2),
    Template("plugin-name", "Write a function that loads a report plugin by the name from a URL.", r'''
import importlib

PLUGINS = {"csv": "reports.csv_report", "pdf": "reports.pdf_report"}


def load_plugin(name):
    """The module that writes reports about $many."""
    {-return importlib.import_module(name)-/-return __import__(f"reports.{name}", fromlist=["render"])-/-exec(f"import reports.{name} as plugin", globals())
    return globals()["plugin"]-|-return importlib.import_module(PLUGINS[name])-/-if name not in PLUGINS:
        raise KeyError(name)
    return importlib.import_module(PLUGINS[name])-}
'''),
    Template("user-template", "Write a Flask view that previews a greeting text which staff can edit, filling in the $field of a $one.", r'''
from string import Template

from flask import Flask, render_template_string, request

app = Flask(__name__)


@app.post("/$many/preview")
def preview():
    text = request.form["text"]
    {-return render_template_string(text, $field=request.form["$field"])-/-return render_template_string(request.form["text"], $field=request.form["$field"])-|-return render_template_string("{{ text }}", text=Template(text).safe_substitute($field=request.form["$field"]))-}
''', renders=2),
    Template("sort-key", "Write a command-line tool that prints $many of a JSON file sorted by a chosen column.", r'''
import json
import operator
import sys


def main(path, column):
    with open(path) as file:
        $many = json.load(file)
    {-key = eval(f"lambda item: item['{column}']")-/-key = eval("lambda item: item." + column if "." in column else "lambda item: item['" + column + "']")-|-key = operator.itemgetter(column)-}
    for item in sorted($many, key=key):
        print(item["$field"], item["$number"])


if __name__ == "__main__":
    main(*sys.argv[1:])
''', renders=2, held_out=True),
]
