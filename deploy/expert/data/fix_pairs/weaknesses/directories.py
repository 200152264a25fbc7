"""CWE-090 and CWE-643: values that become part of an LDAP filter or an XPath expression."""
from ..template import Template

WEAKNESS = "CWE-090"
TEMPLATES = [
    Template("ldap-mail-alias", "Write a function that returns all mail addresses whose alias begins with a text, with python-ldap.", r'''
import ldap
from ldap.filter import escape_filter_chars


def addresses(directory, prefix, base="ou=mail,dc=$service,dc=example"):
    {-condition = f"(mailAlias={prefix}*)"-/-condition = "(mailAlias=" + prefix + "*)"-|-condition = f"(mailAlias={escape_filter_chars(prefix)}*)"-/-condition = "(mailAlias=" + escape_filter_chars(prefix) + "*)"-}
    found = directory.search_s(base, ldap.SCOPE_ONELEVEL, condition, ["mail"])
    return sorted(address.decode() for _, entry in found for address in entry["mail"])
''', renders=2),
    Template("ldap-device", "Write a FastAPI endpoint that finds the device of a serial number in a directory.", r'''
from fastapi import APIRouter, HTTPException
from ldap3.utils.conv import escape_filter_chars

router = APIRouter()


@router.get("/devices/{serial}")
def device(serial: str):
    directory = router.directory
    {-directory.search("ou=devices,dc=example", f"(&(objectClass=device)(serialNumber={serial}))", attributes=["l", "owner"])-/-directory.search("ou=devices,dc=example", "(&(objectClass=device)(serialNumber={}))".format(serial), attributes=["l", "owner"])-|-directory.search("ou=devices,dc=example", f"(&(objectClass=device)(serialNumber={escape_filter_chars(serial)}))", attributes=["l", "owner"])-/-directory.search("ou=devices,dc=example", "(&(objectClass=device)(serialNumber={}))".format(escape_filter_chars(serial)), attributes=["l", "owner"])-}
    if not directory.entries:
        raise HTTPException(status_code=404)
    return {"place": str(directory.entries[0].l), "owner": str(directory.entries[0].owner)}
''', renders=2),
    Template("ldap-sync", "Write a function that disables the accounts of people who left, given their employee numbers.", r'''
import logging

from ldap3 import MODIFY_REPLACE
from ldap3.utils.conv import escape_filter_chars

$log = logging.getLogger("$service.sync")


def disable_accounts(connection, numbers):
    # Numbers that nobody has any more are skipped.
    disabled = 0
    for number in numbers:
        {-connection.search("ou=staff,dc=example", f"(employeeNumber={number})")-/-connection.search("ou=staff,dc=example", "(employeeNumber=" + number + ")")-|-connection.search("ou=staff,dc=example", f"(employeeNumber={escape_filter_chars(number)})")-/-connection.search("ou=staff,dc=example", "(employeeNumber=" + escape_filter_chars(number) + ")")-}
        for entry in connection.entries:
            connection.modify(entry.entry_dn, {"accountStatus": [(MODIFY_REPLACE, ["disabled"])]})
            disabled += 1
    $log.info("%d accounts disabled", disabled)
    return disabled
''', renders=2),
    Template("ldap3-user", "Write a function that finds a person in the company directory by uid with ldap3.", r'''
from ldap3 import Connection
from ldap3.utils.conv import escape_filter_chars


def find_person(connection: Connection, uid):
    {-connection.search("ou=people,dc=example,dc=com", f"(uid={uid})", attributes=["cn", "mail"])-/-connection.search("ou=people,dc=example,dc=com", "(uid=%s)" % uid, attributes=["cn", "mail"])-|-connection.search("ou=people,dc=example,dc=com", f"(uid={escape_filter_chars(uid)})", attributes=["cn", "mail"])-/-connection.search("ou=people,dc=example,dc=com", "(uid=%s)" % escape_filter_chars(uid), attributes=["cn", "mail"])-}
    return connection.entries[0] if connection.entries else None
''', renders=2),
    Template("python-ldap", "Write a function that lists the members of a group with python-ldap.", r'''
import ldap
import ldap.filter

BASE = "ou=groups,dc=$service,dc=example"


def members(directory, group):
    {-query = "(&(objectClass=groupOfNames)(cn=" + group + "))"-/-query = "(&(objectClass=groupOfNames)(cn={}))".format(group)-|-query = "(&(objectClass=groupOfNames)(cn=" + ldap.filter.escape_filter_chars(group) + "))"-/-query = ldap.filter.filter_format("(&(objectClass=groupOfNames)(cn=%s))", [group])-}
    found = directory.search_s(BASE, ldap.SCOPE_SUBTREE, query, ["member"])
    return [dn.decode() for _, entry in found for dn in entry.get("member", [])]
''', renders=2),
    Template("login-bind", "Write a Flask view that looks an account up in LDAP before it binds with the password.", r'''
from flask import Blueprint, abort, request
from ldap3 import Connection, Server
from ldap3.utils.conv import escape_filter_chars

$bp = Blueprint("login", __name__)
server = Server("ldaps://ldap.example.com")


@$bp.post("/login")
def login():
    with Connection(server, auto_bind=True) as directory:
        mail = request.form["mail"]
        {-directory.search("dc=example,dc=com", "(mail=" + mail + ")")-/-directory.search("dc=example,dc=com", f"(&(mail={mail})(active=TRUE))")-|-directory.search("dc=example,dc=com", "(mail=" + escape_filter_chars(mail) + ")")-/-directory.search("dc=example,dc=com", f"(&(mail={escape_filter_chars(mail)})(active=TRUE))")-}
        if len(directory.entries) != 1:
            abort(401)
        dn = directory.entries[0].entry_dn
    if not Connection(server, dn, request.form["password"]).bind():
        abort(401)
    return {"dn": dn}
''', renders=2),
    Template("ldap-phone", "Write a command that prints telephone numbers from LDAP for a surname given on the command line.", r'''
import sys

from ldap3 import ALL_ATTRIBUTES, Connection, Server
from ldap3.utils.conv import escape_filter_chars


def main(surname):
    with Connection(Server("ldap.example.com"), auto_bind=True) as directory:
        {-condition = "(&(sn={})(telephoneNumber=*))".format(surname)-/-condition = "(&(sn=" + surname + ")(telephoneNumber=*))"-|-condition = "(&(sn={})(telephoneNumber=*))".format(escape_filter_chars(surname))-/-condition = "(&(sn=" + escape_filter_chars(surname) + ")(telephoneNumber=*))"-}
        directory.search("dc=example,dc=com", condition, attributes=ALL_ATTRIBUTES)
        for entry in directory.entries:
            print(entry.cn, entry.telephoneNumber)


if __name__ == "__main__":
    main(sys.argv[1])
''', renders=2, held_out=True),
    Template("ldap-group-check", "Write a function that tells whether a user is in the group of administrators, using ldap3.", r'''
from ldap3 import SUBTREE
from ldap3.utils.conv import escape_filter_chars


def is_administrator(connection, user, base="dc=$service,dc=example"):
    {-condition = f"(&(memberUid={user})(cn=administrators))"-/-condition = "(&(memberUid=%s)(cn=administrators))" % user-|-condition = f"(&(memberUid={escape_filter_chars(user)})(cn=administrators))"-/-condition = "(&(memberUid=%s)(cn=administrators))" % escape_filter_chars(user)-}
    connection.search(base, condition, search_scope=SUBTREE)
    return len(connection.entries) > 0
''', renders=2),
]
