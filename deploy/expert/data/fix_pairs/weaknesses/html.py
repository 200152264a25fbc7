"""CWE-079: values that become part of a page's markup."""
from ..template import Template

WEAKNESS = "CWE-079"
TEMPLATES = [
    Template("flask-search", "Write a Flask route that shows what was searched for and how many $many were found.", r'''
from flask import Flask, request
from markupsafe import escape

app = Flask(__name__)


@app.route("/$many/search")
def search():
    term = request.args.get("q", "")
    hits = [item for item in app.config["$upper_INDEX"] if term.lower() in item.lower()]
    {-return f"<h2>{len(hits)} $many for {term}</h2>"-/-return "<h2>%d $many for %s</h2>" % (len(hits), term)-/-return "<h2>" + str(len(hits)) + " $many for " + term + "</h2>"-|-return f"<h2>{len(hits)} $many for {escape(term)}</h2>"-/-return "<h2>%d $many for %s</h2>" % (len(hits), escape(term))-/-return "<h2>" + str(len(hits)) + " $many for " + str(escape(term)) + "</h2>"-}
''', renders=3),
    Template("flask-table", "Write a function that renders $many as the rows of an HTML table.", r'''
import html


def table_rows($many):
    """One <tr> for each $one."""
    rows = []
    for item in $many:
        {-rows.append(f"<tr><td>{item['$field']}</td><td>{item['$other']}</td></tr>")-/-rows.append("<tr><td>" + item["$field"] + "</td><td>" + item["$other"] + "</td></tr>")-/-rows.append("<tr><td>{}</td><td>{}</td></tr>".format(item["$field"], item["$other"]))-|-rows.append(f"<tr><td>{html.escape(item['$field'])}</td><td>{html.escape(item['$other'])}</td></tr>")-/-rows.append("<tr><td>" + html.escape(item["$field"]) + "</td><td>" + html.escape(item["$other"]) + "</td></tr>")-/-rows.append("<tr><td>{}</td><td>{}</td></tr>".format(html.escape(item["$field"]), html.escape(item["$other"])))-}
    return "\n".join(rows)
''', renders=3),
    Template("django-greeting", "Write a Django view that confirms that a $one was saved, naming its $field.", r'''
from django.http import HttpResponse
from django.utils.html import escape, format_html
from django.views.decorators.http import require_POST

from .forms import $clsForm


@require_POST
def save_$one(request):
    form = $clsForm(request.POST)
    if form.is_valid():
        form.save()
    $field = request.POST.get("$field", "")
    {-return HttpResponse(f"<div class='note'>Saved {$field}</div>")-/-return HttpResponse("<div class='note'>Saved %s</div>" % $field)-|-return HttpResponse(format_html("<div class='note'>Saved {}</div>", $field))-/-return HttpResponse("<div class='note'>Saved %s</div>" % escape($field))-}
'''),
    Template("mark-safe", "Write a Django template filter that wraps a $one's $field in a coloured badge.", r'''
from django import template
from django.utils.html import format_html
from django.utils.safestring import mark_safe

register = template.Library()


@register.filter
def $field_badge($one):
    colour = "green" if $one.$number else "grey"
    {-return mark_safe(f'<span class="badge {colour}">{$one.$field}</span>')-/-return mark_safe('<span class="badge %s">%s</span>' % (colour, $one.$field))-|-return format_html('<span class="badge {}">{}</span>', colour, $one.$field)-}
'''),
    Template("markup-link", "Write a helper for Jinja templates that renders a link to a $one.", r'''
from flask import url_for
from markupsafe import Markup


def $one_link($one):
    """An <a> for use in templates, marked as markup."""
    href = url_for("$many.show", ident=$one.id)
    {-return Markup(f'<a href="{href}">{$one.$field}</a>')-/-return Markup('<a href="%s">%s</a>' % (href, $one.$field))-|-return Markup('<a href="{}">{}</a>').format(href, $one.$field)-/-return Markup('<a href="%s">%s</a>') % (href, $one.$field)-}
'''),
    Template("jinja-environment", "Set up Jinja2 for the HTML reports of the $service service and write a function that renders one.", r'''
from jinja2 import Environment, FileSystemLoader, select_autoescape

{-environment = Environment(loader=FileSystemLoader("$folder/templates"))-/-environment = Environment(loader=FileSystemLoader("$folder/templates"), trim_blocks=True, autoescape=False)-|-environment = Environment(loader=FileSystemLoader("$folder/templates"), autoescape=select_autoescape())-/-environment = Environment(loader=FileSystemLoader("$folder/templates"), trim_blocks=True, autoescape=True)-}


def render_report(template, **values):
    return environment.get_template(template).render(title="$title", **values)
''', renders=4),
    Template("jinja-package", "Write a class that renders newsletter pages about $many from templates inside a package.", r'''
import jinja2


class Newsletter:
    def __init__(self, package):
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader(package, "newsletter"),
            undefined=jinja2.StrictUndefined,
            {-lstrip_blocks=True,-/-autoescape=False,-|-autoescape=jinja2.select_autoescape(["html", "xml"]),-/-autoescape=True,-}
        )

    def page(self, $many):
        return self.templates.get_template("page.html").render($many=$many)
''', renders=2),
    Template("render-string", "Write a Flask error page that says which $one was not found.", r'''
from flask import Flask, render_template_string, request

app = Flask(__name__)


@app.errorhandler(404)
def not_found(error):
    {-page = "<h1>No such $one</h1><p>%s does not exist.</p>" % request.path
    return render_template_string(page), 404-/-return render_template_string(f"<h1>No such $one</h1><p>{request.path} does not exist.</p>"), 404-|-page = "<h1>No such $one</h1><p>{{ path }} does not exist.</p>"
    return render_template_string(page, path=request.path), 404-}
'''),
    Template("fastapi-card", "Write a FastAPI endpoint that returns an HTML card for a $one.", r'''
import html

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

app = FastAPI()


@app.get("/card", response_class=HTMLResponse)
def card($field: str, $other: str = "unknown"):
    {-return f"""
    <article>
      <h3>{$field}</h3>
      <p>$other: {$other}</p>
    </article>
    """-|-return f"""
    <article>
      <h3>{html.escape($field)}</h3>
      <p>$other: {html.escape($other)}</p>
    </article>
    """-}
'''),
    Template("release-notes", "Write an aiohttp handler that shows the release notes of a $one, with who wrote them.", r'''
from html import escape

from aiohttp import web


async def release_notes(request):
    found = await request.app["store"].notes(request.match_info["$one"])
    items = ""
    for note in found:
        {-items += f"<dt>{note.author}</dt><dd>{note.text}</dd>"-/-items += "<dt>" + note.author + "</dt><dd>" + note.text + "</dd>"-|-items += f"<dt>{escape(note.author)}</dt><dd>{escape(note.text)}</dd>"-/-items += "<dt>" + escape(note.author) + "</dt><dd>" + escape(note.text) + "</dd>"-}
    return web.Response(text=f"<dl>{items}</dl>", content_type="text/html")
'''),
    Template("safe-filter", "Write a Flask page which lists the $extra of a $one with render_template_string.", r'''
from flask import Blueprint, render_template_string

$bp = Blueprint("$many", __name__)

PAGE = """
<h1>{{ title }}</h1>
<ul>{% for note in notes %}<li>{{ note{-|safe-|--} }}</li>{% endfor %}</ul>
"""


@$bp.get("/$many/<int:ident>/$extra")
def $extra_of(ident):
    return render_template_string(PAGE, title="$extra of $one {}".format(ident), notes=$bp.store.$extra(ident))
'''),
    Template("mail-body", "Write a function that builds the HTML mail which tells a customer about a $one.", r'''
from email.message import EmailMessage
from html import escape


def notification(to, customer, $one):
    message = EmailMessage()
    message["To"] = to
    message["Subject"] = "Your $one"
    message.set_content("Please read this message as HTML.")
    {-body = "<p>Dear {},</p><p>your $one <b>{}</b> is ready.</p>".format(customer, $one.$field)-/-body = f"<p>Dear {customer},</p><p>your $one <b>{$one.$field}</b> is ready.</p>"-|-body = "<p>Dear {},</p><p>your $one <b>{}</b> is ready.</p>".format(escape(customer), escape($one.$field))-/-body = f"<p>Dear {escape(customer)},</p><p>your $one <b>{escape($one.$field)}</b> is ready.</p>"-}
    message.add_alternative(body, subtype="html")
    return message
''', renders=2),
    Template("gift-card", "Write a Flask view that previews a gift card with the names and the message from a form.", r'''
import html

from flask import Flask, make_response, request

app = Flask(__name__)


@app.post("/gift/preview")
def preview():
    giver = request.form["giver"]
    wish = request.form.get("wish", "")
    {-page = "<h1>" + giver + "</h1><blockquote>" + wish + "</blockquote>"-/-page = "<h1>{}</h1><blockquote>{}</blockquote>".format(giver, wish)-|-page = "<h1>" + html.escape(giver) + "</h1><blockquote>" + html.escape(wish) + "</blockquote>"-/-page = "<h1>{}</h1><blockquote>{}</blockquote>".format(html.escape(giver), html.escape(wish))-}
    return make_response(page)
''', held_out=True, renders=2),
]
