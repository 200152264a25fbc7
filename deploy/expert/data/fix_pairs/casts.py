"""The words that renders of a template differ in: what the code is about and what its author calls things."""

import random

# one, many, a text column, another, a whole-number column
DOMAINS = [
    ("invoice", "invoices", "reference", "currency", "amount"),
    ("patient", "patients", "surname", "ward", "bed"),
    ("shipment", "shipments", "carrier", "destination", "weight"),
    ("ticket", "tickets", "subject", "status", "priority"),
    ("recipe", "recipes", "title", "cuisine", "servings"),
    ("vehicle", "vehicles", "plate", "model", "mileage"),
    ("course", "courses", "code", "lecturer", "credits"),
    ("tenant", "tenants", "slug", "region", "seats"),
    ("booking", "bookings", "guest", "room", "nights"),
    ("article", "articles", "headline", "author", "words"),
    ("device", "devices", "serial", "site", "port"),
    ("supplier", "suppliers", "company", "country", "rating"),
    ("player", "players", "nickname", "team", "score"),
    ("track", "tracks", "artist", "genre", "seconds"),
    ("member", "members", "email", "plan", "points"),
    ("sensor", "sensors", "label", "unit", "interval"),
    ("parcel", "parcels", "barcode", "depot", "volume"),
    ("student", "students", "matric", "faculty", "year"),
    ("job", "jobs", "queue", "state", "attempts"),
    ("contract", "contracts", "party", "stage", "term"),
    ("species", "species_list", "latin", "habitat", "count"),
    ("flight", "flights", "airline", "gate", "delay"),
    ("lesson", "lessons", "topic", "teacher", "minutes"),
    ("coupon", "coupons", "code", "campaign", "uses"),
]

POOLS = {
    "conn": ["conn", "db", "connection", "database"],
    "cur": ["cursor", "cur", "c"],
    "log": ["logger", "log", "LOG"],
    "root": ["UPLOAD_ROOT", "REPORT_DIR", "MEDIA_ROOT", "EXPORT_DIR", "STORE", "ATTACHMENTS"],
    "folder": [
        "/srv/uploads",
        "/var/lib/reports",
        "/data/media",
        "/opt/exports",
        "/srv/store",
        "/var/spool/attachments",
    ],
    "name": ["name", "filename", "file_name", "wanted"],
    "service": ["billing", "catalog", "ledger", "inventory", "directory", "scheduler", "mailer"],
    "url": ["url", "link", "address", "target_url"],
    "res": ["response", "resp", "reply", "r"],
    "exc": ["exc", "error", "err", "e"],
    "payload": ["payload", "data", "body", "blob", "raw"],
    "size": ["16", "20", "24", "32"],
    "bp": ["bp", "api", "pages", "admin"],
    "secret": ["API_TOKEN", "DB_PASSWORD", "SMTP_PASSWORD", "SIGNING_KEY", "WEBHOOK_SECRET"],
    "extra": ["notes", "remarks", "comment", "details"],
}


def cast(template, number, rng):
    """The words of render `number`; renders of one template are about different things."""
    domains = DOMAINS[:]
    random.Random(template).shuffle(domains)
    one, many, field, other, count = domains[number % len(domains)]
    words = {
        "one": one,
        "many": many,
        "cls": one.capitalize(),
        "field": field,
        "other": other,
        "number": count,
        "upper": one.upper(),
        "title": many.replace("_", " ").capitalize(),
    }
    return words | {pool: rng.choice(choices) for pool, choices in POOLS.items()}
