"""CWE-089: values that become part of a query's text."""
from ..template import Template

WEAKNESS = "CWE-089"
TEMPLATES = [
    Template("sqlite-lookup", "Write a Python function that looks up a $one by its $field in an SQLite database.", r'''
import sqlite3


def find_$one(path, $field):
    {?"""Return the $one with this $field, or None."""-/-# None when there is no such $one?}
    $conn = sqlite3.connect(path)
    try:
        {?row = $conn.execute-/-row = $conn.cursor().execute?}({-f"SELECT id, $field, $other FROM $many WHERE $field = '{$field}'"-/-"SELECT id, $field, $other FROM $many WHERE $field = '%s'" % $field-/-"SELECT id, $field, $other FROM $many WHERE $field = '" + $field + "'"-|-"SELECT id, $field, $other FROM $many WHERE $field = ?", ($field,)-}).fetchone()
    finally:
        $conn.close()
    return row
''', renders=4),
    Template("psycopg-insert", "Using psycopg, write a method that stores a new $one with its $field, $other and $number.", r'''
class $clsStore:
    def __init__(self, $conn):
        self.$conn = $conn

    def add(self, $field, $other, $number):
        with self.$conn.cursor() as $cur:
            $cur.execute(
                {-f"INSERT INTO $many ($field, $other, $number) VALUES ('{$field}', '{$other}', {$number}) RETURNING id"-/-"INSERT INTO $many ($field, $other, $number) VALUES ('%s', '%s', %s) RETURNING id" % ($field, $other, $number)-|-"INSERT INTO $many ($field, $other, $number) VALUES (%s, %s, %s) RETURNING id",
                ($field, $other, $number)-},
            )
            new_id = $cur.fetchone()[0]
        self.$conn.commit()
        return new_id
''', renders=4),
    Template("sqlalchemy-text", "Write a function that returns all $many with a given $other, using SQLAlchemy Core and raw SQL.", r'''
from sqlalchemy import create_engine, text

engine = create_engine("postgresql:///{?crm-/-warehouse-/-backoffice?}")


def $many_by_$other($other, limit=50):
    {-query = text(f"SELECT * FROM $many WHERE $other = '{$other}' LIMIT {limit}")-/-query = text("SELECT * FROM $many WHERE $other = '" + $other + "' LIMIT " + str(limit))-|-query = text("SELECT * FROM $many WHERE $other = :$other LIMIT :limit")-}
    with engine.connect() as $conn:
        return [dict(row._mapping) for row in $conn.execute(query{--|-, {"$other": $other, "limit": limit}-})]
'''),
    Template("django-raw", "Write a Django view that searches $many by $field with a raw query and returns JSON.", r'''
from django.http import JsonResponse

from .models import $cls


def search(request):
    term = request.GET.get("q", "")
    {-found = $cls.objects.raw(f"SELECT * FROM app_$one WHERE $field LIKE '%%{term}%%'")-/-found = $cls.objects.raw("SELECT * FROM app_$one WHERE $field LIKE '%%" + term + "%%'")-|-found = $cls.objects.raw("SELECT * FROM app_$one WHERE $field LIKE %s", [f"%{term}%"])-}
    return JsonResponse({"results": [{"id": item.pk, "$field": item.$field} for item in found]})
'''),
    Template("django-cursor", "Write a Django helper that counts the $many of a $other with django.db.connection.", r'''
from django.db import connection


def count_$many($other, minimum=0):
    with connection.cursor() as $cur:
        {-$cur.execute("SELECT COUNT(*) FROM $many WHERE $other = '{}' AND $number >= {}".format($other, minimum))-/-$cur.execute(f"SELECT COUNT(*) FROM $many WHERE $other = '{$other}' AND $number >= {minimum}")-|-$cur.execute("SELECT COUNT(*) FROM $many WHERE $other = %s AND $number >= %s", [$other, minimum])-}
        (total,) = $cur.fetchone()
    return total
'''),
    Template("update-status", "Write a function that changes the $other of a $one with pymysql.", r'''
def set_$other($conn, $one_id, $other):
    sql = {-"UPDATE $many SET $other = '%s' WHERE id = %s" % ($other, $one_id)-/-f"UPDATE $many SET $other = '{$other}' WHERE id = {$one_id}"-|-"UPDATE $many SET $other = %s WHERE id = %s"-}
    with $conn.cursor() as $cur:
        changed = $cur.execute(sql{--|-, ($other, $one_id)-})
    $conn.commit()
    return changed == 1
''', renders=3),
    Template("in-list", "Write a function that loads several $many by a list of ids from SQLite.", r'''
def load_$many($conn, ids):
    """Load the $many with these ids, in no particular order."""
    if not ids:
        return []
    {-wanted = ", ".join(str(i) for i in ids)
    $cur = $conn.execute(f"SELECT id, $field FROM $many WHERE id IN ({wanted})")-/-wanted = "','".join(ids)
    $cur = $conn.execute("SELECT id, $field FROM $many WHERE id IN ('" + wanted + "')")-|-marks = ", ".join("?" * len(ids))
    $cur = $conn.execute(f"SELECT id, $field FROM $many WHERE id IN ({marks})", list(ids))-}
    return $cur.fetchall()
'''),
    Template("asyncpg-route", "Write a FastAPI endpoint that lists the $many of a $other from an asyncpg pool.", r'''
from fastapi import APIRouter, Request

router = APIRouter(prefix="/$many")


@router.get("/by-$other/{$other}")
async def list_$many(request: Request, $other: str, page: int = 0):
    async with request.app.state.pool.acquire() as $conn:
        rows = await $conn.fetch(
            {-f"SELECT id, $field, $number FROM $many WHERE $other = '{$other}' ORDER BY id OFFSET {page * 20} LIMIT 20"-|-"SELECT id, $field, $number FROM $many WHERE $other = $1 ORDER BY id OFFSET $2 LIMIT 20", $other, page * 20-},
        )
    return [dict(row) for row in rows]
'''),
    Template("delete-older", "Write a command-line script that deletes $many by $field from an SQLite file.", r'''
import argparse
import sqlite3


def main():
    parser = argparse.ArgumentParser(description="Remove $many")
    parser.add_argument("file")
    parser.add_argument("$field")
    args = parser.parse_args()
    with sqlite3.connect(args.file) as $conn:
        {-$conn.executescript("DELETE FROM $many WHERE $field = '" + args.$field + "';")-/-$conn.execute("DELETE FROM $many WHERE $field = '{}'".format(args.$field))-|-$conn.execute("DELETE FROM $many WHERE $field = ?", (args.$field,))-}


if __name__ == "__main__":
    main()
'''),
    Template("login-check", "Write a function that checks a $one's credentials against an SQLite table of accounts.", r'''
import hashlib


def authenticate($conn, login, password):
    digest = hashlib.scrypt(password.encode(), salt=login.encode().ljust(16), n=2**14, r=8, p=1).hex()
    $cur = $conn.cursor()
    {-query = "SELECT id, role FROM accounts WHERE login = '" + login + "' AND digest = '" + digest + "'"
    $cur.execute(query)-/-$cur.execute(f"SELECT id, role FROM accounts WHERE login = '{login}' AND digest = '{digest}'")-|-query = "SELECT id, role FROM accounts WHERE login = ? AND digest = ?"
    $cur.execute(query, (login, digest))-}
    account = $cur.fetchone()
    return account and {"id": account[0], "role": account[1]}
''', renders=2, held_out=True),
]
