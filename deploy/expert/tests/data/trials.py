"""What running a pair shows: `works` on ordinary input, and whether an attack gets through.

A trial is called with the loaded module of one version and returns True where the attack succeeded; ordinary use is
asserted on the way. It is named after a pair's group.
"""

import asyncio
import base64
import io
import json
import os
import pickle
import random
import re
import sqlite3
import stat
import sys
import tarfile
import types
import zipfile

import pytest
import stubs

TRIALS = {}


def trial(group):
    def add(function):
        assert group not in TRIALS
        TRIALS[group] = function
        return function

    return add


def member(module, prefix):
    """The module's one function or class whose name begins so."""
    found = [
        value
        for name, value in vars(module).items()
        if name.lower().startswith(prefix.lower())
        and getattr(value, "__module__", None) == module.__name__
        and callable(value)
    ]
    assert len(found) == 1, f"{module.__name__} has {len(found)} of {prefix}*"
    return found[0]


def table(source):
    """(table, columns) of the first query with a list of columns."""
    match = re.search(r"SELECT (.*?) FROM (\w+)", source)
    return match[2], [name.strip() for name in match[1].split(",")]


def database(path, name, columns, rows):
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", rows)
    connection.commit()
    return connection


class Pwned:
    """Unpickled, it makes the file `pwned` in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def pwned():
    """Whether an attack left its mark here."""
    return os.path.exists("pwned")


def program(name, script):
    """Puts a program of this name first on the path."""
    os.makedirs("bin", exist_ok=True)
    with open(f"bin/{name}", "w") as file:
        file.write("#!/bin/sh\n" + script)
    os.chmod(f"bin/{name}", 0o755)
    os.environ["PATH"] = f"{os.getcwd()}/bin:{os.environ['PATH']}"


@trial("cwe-089-sqlite-lookup")
def _(module, source):
    name, columns = table(source)
    database("data.db", name, columns, [(1, "first", "x"), (2, "second", "y")]).close()
    find = member(module, "find_")
    assert find("data.db", "second")[0] == 2 and find("data.db", "third") is None
    return find("data.db", "' OR '1'='1") is not None


@trial("cwe-089-in-list")
def _(module, source):
    name, columns = table(source)
    connection = database(":memory:", name, columns, [("1", "a"), ("2", "b"), ("3", "c")])
    load = member(module, "load_")
    assert sorted(row[0] for row in load(connection, ["1", "3"])) in (["1", "3"], []) and load(connection, []) == []
    attack = "0') OR ('1'='1" if "','" in source else "'0') OR (1=1"
    return len(load(connection, [attack])) == 3


@trial("cwe-089-delete-older")
def _(module, source):
    match = re.search(r"DELETE FROM (\w+) WHERE (\w+) =", source)
    database("data.db", match[1], [match[2]], [("a",), ("b",), ("c",)]).close()

    def run(value):
        sys.argv = ["remove", "data.db", value]
        module.main()
        return sqlite3.connect("data.db").execute(f"SELECT COUNT(*) FROM {match[1]}").fetchone()[0]

    assert run("a") == 2
    return run("x' OR '1'='1") == 0


@trial("cwe-089-login-check")
def _(module, source):
    import hashlib

    digest = hashlib.scrypt(b"right", salt=b"ann".ljust(16), n=2**14, r=8, p=1).hex()
    connection = database(":memory:", "accounts", ["id", "role", "login", "digest"], [(7, "admin", "ann", digest)])
    assert module.authenticate(connection, "ann", "right") == {"id": 7, "role": "admin"} and not module.authenticate(
        connection, "ann", "wrong"
    )
    return bool(module.authenticate(connection, "ann' --", "wrong"))


@trial("cwe-078-thumbnail")
def _(module, source):
    program("convert", 'echo "$@" > called\n')
    module.make_thumbnail("in.png", "out.png", 64)
    assert open("called").read().split() == ["in.png", "-thumbnail", "64x64", "out.png"]
    try:
        module.make_thumbnail("in.png; mkdir pwned;", "out.png")
    except Exception:
        pass
    return pwned()


@trial("cwe-078-mirror")
def _(module, source):
    program("rsync", 'echo "$@" > called\n')
    module.MIRRORS = "mirrors"
    target = module.mirror("documents")
    assert open("called").read().split() == ["-a", "documents", target]
    try:
        module.mirror("documents; mkdir pwned;")
    except Exception:
        pass
    return pwned()


@trial("cwe-078-disk-usage")
def _(module, source):
    os.mkdir("documents")
    assert module.used_bytes("documents") >= 0
    try:
        module.used_bytes("documents; mkdir pwned")
    except Exception:
        pass
    return pwned()


@trial("cwe-078-transcode")
def _(module, source):
    program("ffmpeg", 'echo "$@" > called\n')
    module.Transcoder().start("in.wav", "out.mp3").wait()
    assert open("called").read().split()[:3] == ["-y", "-i", "in.wav"]
    module.Transcoder().start(
        "in.wav'; mkdir pwned; '" if "'{recording}'" in source else "in.wav; mkdir pwned;", "out.mp3"
    ).wait()
    return pwned()


@trial("cwe-078-async-probe")
def _(module, source):
    program("pdfinfo", "echo Pages: 3\n")
    assert asyncio.run(module.page_count("a.pdf")) == 3
    asyncio.run(module.page_count("a.pdf'; mkdir pwned; '" if "'%s'" in source else "a.pdf; mkdir pwned"))
    return pwned()


@trial("cwe-078-remote-restart")
def _(module, source):
    program("ssh", 'for last; do :; done; sh -c "$last"\n')
    program("sudo", 'echo "$@" > called\n')
    assert (
        module.restart_unit("host", "web.service") == 0 and open("called").read() == "systemctl restart web.service\n"
    )
    module.restart_unit("host", "web; mkdir pwned")
    return pwned()


@trial("cwe-078-journal")
def _(module, source):
    program("journalctl", 'echo "$@"\n')
    module.request.args = {"unit": "web"}
    assert module.journal() == {"entries": ["--no-pager -n 50 -u web"]}
    module.request.args = {"unit": "x'; mkdir pwned; '" if "'{unit}'" in source else "x; mkdir pwned"}
    module.journal()
    return pwned()


SCRIPT = "<script>alert(1)</script>"


@trial("cwe-079-flask-search")
def _(module, source):
    module.app.config = {re.search(r'config\["(\w+)"\]', source)[1]: ["Alpha", "beta", "alphabet"]}
    module.request.args = {"q": "alpha"}
    page = str(module.search())
    assert page.startswith("<h2>2 ") and page.endswith("for alpha</h2>")
    module.request.args = {"q": SCRIPT}
    return SCRIPT in str(module.search())


@trial("cwe-079-flask-table")
def _(module, source):
    fields = re.findall(r"item\[['\"](\w+)['\"]\]", source)
    assert module.table_rows([dict.fromkeys(fields, "x")]) == "<tr><td>x</td><td>x</td></tr>"
    return SCRIPT in module.table_rows([dict.fromkeys(fields, SCRIPT)])


@trial("cwe-079-mail-body")
def _(module, source):
    def text(name):
        message = module.notification("a@example.com", name, stubs.Anything())
        return message.get_body(("html",)).get_content()

    assert "<p>Dear Ann,</p>" in text("Ann")
    return SCRIPT in text(SCRIPT)


@trial("cwe-079-fastapi-card")
def _(module, source):
    assert "<h3>Ann</h3>" in module.card("Ann", "x")
    return SCRIPT in module.card(SCRIPT, "x")


@trial("cwe-079-release-notes")
def _(module, source):
    class Store:
        async def notes(self, _):
            return [types.SimpleNamespace(author=self.author, text="fine")]

    def page(author):
        Store.author = author
        request = types.SimpleNamespace(app={"store": Store()}, match_info=stubs.Anything())
        return asyncio.run(module.release_notes(request))

    assert page("Ann") == "<dl><dt>Ann</dt><dd>fine</dd></dl>"
    return SCRIPT in page(SCRIPT)


@trial("cwe-079-gift-card")
def _(module, source):
    module.request.form = {"giver": "Ann", "wish": "be well"}
    assert module.preview() == "<h1>Ann</h1><blockquote>be well</blockquote>"
    module.request.form = {"giver": SCRIPT}
    return SCRIPT in module.preview()


def reads_outside(read):
    """Whether the file beside the folder `inside` can be read; None counts as no."""
    try:
        return read("../secret") in ("hidden", b"hidden")
    except Exception:
        return False


def folder_with_secret():
    os.mkdir("inside")
    for path, text in (("inside/a.txt", "fine"), ("secret", "hidden")):
        with open(path, "w") as file:
            file.write(text)
    return os.path.abspath("inside")


def set_root(module, source, folder):
    setattr(module, re.search(r"^([A-Z_]+) = ", source, re.M)[1], folder)


@trial("cwe-022-open-join")
def _(module, source):
    set_root(module, source, folder_with_secret())
    assert module.preview("a.txt") == ["fine"]
    return reads_outside(lambda name: module.preview(name)[0])


@trial("cwe-022-pathlib-open")
def _(module, source):
    files = next(
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    )(folder_with_secret())
    assert files.load("a.txt") == b"fine"
    return reads_outside(files.load)


@trial("cwe-022-fastapi-file")
def _(module, source):
    set_root(module, source, folder_with_secret())
    assert asyncio.run(module.picture("a.txt"))[0] == "file"
    return reads_outside(lambda name: open(asyncio.run(module.picture(name))[1]).read())


@trial("cwe-022-delete-report")
def _(module, source):
    set_root(module, source, folder_with_secret())
    for name in ("inside/a.pdf", "b.pdf"):
        open(name, "w").close()
    assert module.delete_report("a") and not module.delete_report("a")
    module.delete_report("../b")
    return not os.path.exists("b.pdf")


@trial("cwe-022-theme-file")
def _(module, source):
    from pathlib import Path

    module.THEMES = Path("themes")
    module.THEMES.mkdir()
    for path in ("themes/dark.json", "secret.json"):
        Path(path).write_text('{"a": 1}')
    assert module.load_theme("dark") == {"a": 1}
    try:
        return module.load_theme("../secret") == {"a": 1}
    except Exception:
        return False


@trial("cwe-022-export-write")
def _(module, source):
    from pathlib import Path

    os.mkdir("exports")
    set_root(module, source, Path("exports").resolve())
    module.export_csv("a.csv", [(1, 2, 3)])
    assert os.path.getsize("exports/a.csv") > 0
    try:
        module.export_csv("../outside.csv", [])
    except ValueError:
        pass
    return os.path.exists("outside.csv")


def tar(names, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as bundle:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 4
            bundle.addfile(entry, io.BytesIO(b"text"))
    out.seek(0)
    return out


@trial("cwe-022-tar-import")
def _(module, source):
    import tempfile

    unpack = member(module, "import_")
    for name, names in (("good.tar", ["a.txt"]), ("bad.tar", ["../outside-cosec.txt"])):
        with open(name, "wb") as file:
            file.write(tar(names).read())
    tempfile.tempdir = os.getcwd()
    try:
        assert unpack("good.tar") == ["a.txt"]
        try:
            unpack("bad.tar")
        except Exception:
            pass
    finally:
        tempfile.tempdir = None
    return os.path.exists("outside-cosec.txt")


@trial("cwe-022-tar-stream")
def _(module, source):
    os.mkdir("target")
    module.restore(tar(["a.txt"], "w:gz"), "target")
    assert os.path.exists("target/a.txt")
    try:
        module.restore(tar(["../outside.txt"], "w:gz"), "target")
    except ValueError:
        pass
    return os.path.exists("outside.txt")


@trial("cwe-022-zip-members")
def _(module, source):
    for name, inside in (("good.zip", "a.txt"), ("bad.zip", "../outside.txt")):
        with zipfile.ZipFile(name, "w") as bundle:
            bundle.writestr(inside, "text")
    module.unpack("good.zip", "target")
    assert os.path.exists("target/a.txt")
    try:
        module.unpack("bad.zip", "target")
    except ValueError:
        pass
    return os.path.exists("outside.txt")


@trial("cwe-502-wizard-state")
def _(module, source):
    assert module.answers_of(module.hidden_value({"page": 2})) == {"page": 2} and module.answers_of("") == {}
    try:
        module.answers_of(base64.urlsafe_b64encode(pickle.dumps(Pwned())).decode())
    except ValueError:
        pass
    return pwned()


@trial("cwe-502-redis-cache")
def _(module, source):
    class Redis(dict):
        def set(self, key, value, ex):
            self[key] = value

    redis = Redis()
    cache = member(module, re.search(r"class (\w+)", source)[1])(redis)
    cache.put("k", {"a": 1})
    assert cache.get("k") == {"a": 1} and cache.get("other") is None
    redis[next(iter(redis))] = pickle.dumps(Pwned())
    try:
        cache.get("k")
    except ValueError:
        pass
    return pwned()


@trial("cwe-502-queue-worker")
def _(module, source):
    safe = json.dumps if "json.loads" in source else pickle.dumps
    bare = '["kind"]' not in source.split("handlers[")[0] and "kind, arguments" in source

    def run(body):
        done = []
        channel = stubs.Anything(basic_get=lambda _: (stubs.Anything(), None, body))
        module.handle_next(channel, {"add": lambda n: done.append(n)})
        return done

    assert run(safe(["add", {"n": 2}] if bare else {"kind": "add", "arguments": {"n": 2}})) == [2]
    try:
        run(pickle.dumps(Pwned()))
    except Exception:
        pass
    return pwned()


def repeats(make):
    """Whether the same state of `random` gives the same value twice."""
    values = []
    for _ in range(2):
        random.seed(1)
        values.append(make())
    return values[0] == values[1]


@trial("cwe-330-voucher")
def _(module, source):
    assert re.fullmatch(r"\w{4}-\w{4}-\w{4}", module.voucher_code()) and module.voucher_code() != module.voucher_code()
    return repeats(module.voucher_code)


@trial("cwe-330-one-time-code")
def _(module, source):
    assert re.fullmatch(r"\d{6}", module.one_time_code())
    return all(repeats(module.one_time_code) for _ in range(3))


@trial("cwe-328-file-digest")
def _(module, source):
    with open("release", "wb") as file:
        file.write(b"x" * 100_000)
    digest = module.release_digest("release")
    assert digest == module.release_digest("release")
    return len(digest) < 64


@trial("cwe-328-hmac-signature")
def _(module, source):
    assert module.sign(b"k", b"a") != module.sign(b"k", b"b") and module.sign(b"k", b"a") != module.sign(b"l", b"a")
    return len(module.sign(b"k", b"a")) < 64


@trial("cwe-094-literal")
def _(module, source):
    assert member(module, "parse_")("[1, '2', 3]") == [1, 2, 3]
    try:
        member(module, "parse_")("[__import__('os').mkdir('pwned')]")
    except Exception:
        pass
    return pwned()


@trial("cwe-094-transform")
def _(module, source):
    assert module.apply_transforms(" a ", ["strip", "upper"]) == "A"
    try:
        module.apply_transforms("a", ["upper() or __import__('os').mkdir('pwned') or str", "__class__", "lower"])
    except Exception:
        pass
    try:
        module.apply_transforms("a", ["__class__, __import__('os').mkdir('pwned'), text.upper"])
    except Exception:
        pass
    return pwned()


@trial("cwe-094-filter-rule")
def _(module, source):
    items = [{"a": 1}, {"a": 5}]
    assert member(module, "matching")(items, "a", ">", 3) == [{"a": 5}]
    try:
        member(module, "matching")(
            items, "a", "if __import__('os').path.exists('pwned') or __import__('os').mkdir('pwned') else", 3
        )
    except Exception:
        pass
    return pwned()


@trial("cwe-094-dispatch")
def _(module, source):
    many, number = re.search(r"\(app\.(\w+)\)", source)[1], re.search(r'item\["(\w+)"\]', source)[1]
    setattr(module.app, many, [{number: 2}, {number: 5}])
    module.request.json = {"action": "total"}
    assert module.act() == {"result": 7}
    module.request.json = {"action": "id" if "globals()" not in source else "request"}
    try:
        module.act()
    except stubs.Raised:
        return False
    return True


@trial("cwe-732-mailbox")
def _(module, source):
    module.export_mailbox("box", [b"hello"])
    assert b"hello" in open("box", "rb").read()
    return bool(stat.S_IMODE(os.stat("box").st_mode) & 0o077)


@trial("cwe-732-open-mode")
def _(module, source):
    old = os.umask(0)
    try:
        module.create_token_file("token", "t")
    finally:
        os.umask(old)
    with pytest.raises(FileExistsError):
        module.create_token_file("token", "t")
    return bool(stat.S_IMODE(os.stat("token").st_mode) & 0o077)


@trial("cwe-732-data-folder")
def _(module, source):
    old = os.umask(0)
    try:
        folder = module.document_folder(os.getcwd(), "7")
    finally:
        os.umask(old)
    assert os.path.isdir(folder)
    return bool(stat.S_IMODE(os.stat(folder).st_mode) & 0o077)


@trial("cwe-732-settings-save")
def _(module, source):
    from pathlib import Path

    module.Settings.path = Path("config") / "service.json"
    module.Settings().save("t", theme="dark")
    assert json.loads(module.Settings.path.read_text()) == {"token": "t", "theme": "dark"}
    return bool(stat.S_IMODE(os.stat(module.Settings.path).st_mode) & 0o077)


@trial("cwe-117-history-file")
def _(module, source):
    module.note_change("log", "ann", "a title")
    assert len(open("log").read().splitlines()) == 1
    module.note_change("log", "ann\n[2026-01-01] root", "a title")
    return len(open("log").read().splitlines()) == 3


@trial("cwe-117-payment-callback")
def _(module, source):
    import logging

    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())
    logger = logging.getLogger("payments")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        assert module.on_callback({"order": "7", "status": "paid"}) and len(lines) == 1
        module.on_callback({"order": "7\nforged", "status": "x"})
    finally:
        logger.removeHandler(handler)
    return len(lines) == 3


@trial("cwe-209-fastapi-lookup")
def _(module, source):
    class Store:
        async def get(self, ident):
            if ident == 1:
                return {"id": 1}
            raise RuntimeError("table x at db.internal")

    request = stubs.Anything(app=stubs.Anything(state=stubs.Anything(store=Store())))
    get = member(module, "get_")
    assert asyncio.run(get(request, 1)) == {"id": 1}
    with pytest.raises(stubs.Raised) as raised:
        asyncio.run(get(request, 2))
    return "db.internal" in str(raised.value)


@trial("cwe-918-proxy-service")
def _(module, source):
    asked = []
    module.requests.get = lambda url, **_: asked.append(url) or types.SimpleNamespace(content=b"", status_code=200)
    module.proxy("metrics", "up")
    assert "metrics" in asked.pop()
    try:
        module.proxy("169.254.169.254", "latest")
    except stubs.Raised:
        pass
    return any("169.254.169.254" in url for url in asked)


@trial("cwe-918-region-host")
def _(module, source):
    asked = []
    answer = stubs.Anything(json=lambda: dict.fromkeys(re.findall(r'json\(\)\["(\w+)"\]', source), 3))
    module.requests.get = lambda url, **_: asked.append(url) or answer
    ask = next(value for name, value in vars(module).items() if name.endswith("_in_region"))
    assert ask("eu", "5") == 3
    asked.clear()
    try:
        ask("evil.example/", "5")
    except (KeyError, ValueError):
        pass
    return any("evil.example" in url for url in asked)


@trial("cwe-521-strength")
def _(module, source):
    assert module.strong_enough("Correct-Horse-42-Battery")
    return module.strong_enough("abc123")


@trial("cwe-521-register")
def _(module, source):
    accounts = {}
    module.register(accounts, "ann", "Correct-Horse-42-Battery")
    assert "ann" in accounts
    try:
        module.register(accounts, "bob", "12345")
    except ValueError:
        pass
    return "bob" in accounts


@trial("cwe-521-change")
def _(module, source):
    account = member(module, re.search(r"class (\w+)", source)[1])("old", lambda password: password)
    account.change_password("old", "Correct-Horse-42-Battery")
    assert account.password_hash == "Correct-Horse-42-Battery"
    try:
        account.change_password("Correct-Horse-42-Battery", "1234567")
    except ValueError:
        pass
    return account.password_hash == "1234567"


@trial("cwe-614-simple-cookie")
def _(module, source):
    headers = []
    module.add_cart_cookie(headers, "abc")
    (name, value), = headers
    assert name == "Set-Cookie" and value.startswith("cart=abc")
    return "HttpOnly" not in value or "Secure" not in value


@trial("cwe-639-sqlite-cancel")
def _(module, source):
    name = re.search(r"UPDATE (\w+)", source)[1]
    connection = database(":memory:", name, ["id", "owner_id", "cancelled"], [(1, 10, 0), (2, 20, 0)])
    cancel = member(module, "cancel_")
    assert cancel(connection, 10, 1) and not cancel(connection, 10, 3)
    return cancel(connection, 10, 2)


@trial("cwe-639-memory-notes")
def _(module, source):
    notes = module.Notes()
    mine, other = notes.add("ann", "x"), notes.add("bob", "y")
    notes.delete("ann", mine)
    with pytest.raises(KeyError):
        notes.delete("ann", mine)
    try:
        notes.delete("ann", other)
    except KeyError:
        return False
    return True


@trial("cwe-434-flask-allowed")
def _(module, source):
    class Upload:
        def __init__(self, filename):
            self.filename = filename

        def save(self, path):
            open(path, "w").close()

    assert module.store_upload(Upload("a.csv"), ".").endswith(".csv") and module.store_upload(None, ".") is None
    return module.store_upload(Upload("a.php"), ".") is not None


@trial("cwe-208-reset-code")
def _(module, source):
    class Code(str):
        """A code that notices being compared by an operator."""

        compared = False

        def __eq__(self, other):
            Code.compared = True
            return str.__eq__(self, other)

        def __ne__(self, other):
            Code.compared = True
            return str.__ne__(self, other)

        __hash__ = str.__hash__

    account = types.SimpleNamespace(reset_expires=1e12, reset_code=Code("1234"), password_hash="")
    Code.compared = False
    assert (
        not module.reset(account, "4321", "h") and module.reset(account, "1234", "h") and account.password_hash == "h"
    )
    return Code.compared
