"""Stand-ins for packages that fix pairs import: enough of each to call the code, and nothing that reaches a network."""

import html
import json
import sys
import types


class Anything:
    """An object whose attributes, calls and items are more of it; called with one function, a decorator."""

    def __init__(self, **known):
        self.__dict__.update(known)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *arguments, **keywords):
        return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], types.FunctionType) else Anything()

    def __getitem__(self, key):
        return Anything()


class Raised(Exception):
    """What `abort` and framework's errors become; the first argument is the status where there is one."""


def abort(status, **_):
    raise Raised(status)


def http_exception(status_code, detail=None):
    return Raised(status_code, detail)


class App(Anything):
    """A Flask or FastAPI application, or a blueprint or router: every route returns its function."""

    def __init__(self, *_, **__):
        super().__init__(config={})


def module(name, **members):
    found = types.ModuleType(name)
    found.__dict__.update(members)
    return found


def install(monkeypatch, **overrides):
    """Puts the stand-ins into sys.modules for one test; `overrides`: module name with _ for dots -> members."""
    request = Anything(args={}, form={}, files={}, json={}, headers={}, path="/")
    members = {
        "flask": dict(
            Flask=App,
            Blueprint=App,
            request=request,
            abort=abort,
            jsonify=lambda *a, **k: k or a[0],
            session={},
            redirect=lambda to, **_: ("to", to),
            url_for=lambda name, **_: f"/{name}",
            make_response=lambda body: body,
            render_template_string=lambda text, **_: text,
            send_file=lambda path, **_: ("file", path),
            send_from_directory=Anything(),
            current_app=Anything(),
            g=Anything(),
            Response=Anything(),
        ),
        "markupsafe": dict(escape=html.escape),
        "fastapi": dict(
            FastAPI=App,
            APIRouter=App,
            HTTPException=http_exception,
            Request=object,
            Response=object,
            UploadFile=object,
            Depends=Anything(),
            Header=lambda *_, **__: "",
            Form=lambda *_, **__: "",
            Cookie=lambda *_, **__: "",
        ),
        "fastapi.responses": dict(
            HTMLResponse=Anything(), FileResponse=lambda path: ("file", path), RedirectResponse=Anything()
        ),
        "aiohttp": dict(
            web=Anything(Response=lambda text="", **_: text, json_response=lambda value, **_: json.dumps(value))
        ),
        "werkzeug": {},
        "werkzeug.security": dict(
            generate_password_hash=lambda password: "hash", check_password_hash=lambda stored, password: True
        ),
        "werkzeug.utils": dict(secure_filename=lambda name: name.replace("/", "_").lstrip(".")),
        "requests": dict(get=None, post=None),
        "httpx": {},
        "yaml": {},
    }
    for name, given in overrides.items():
        members.setdefault(name.replace("_", "."), {}).update(given)
    for name, given in members.items():
        monkeypatch.setitem(sys.modules, name, module(name, **given))
    return members
