"""CWE-090 and CWE-643: values that become part of an LDAP filter or an XPath expression."""
from ..template import Template

WEAKNESS = "CWE-090"
TEMPLATES = [
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
    Template("xpath-lookup", "Write a function that finds a $one by $field in an XML tree with lxml's XPath.", r'''
from lxml import etree


def find_$one(tree, $field):
    """The first matching $one element, or None."""
    {-found = tree.xpath(f"//$one[@$field='{$field}']")-/-found = tree.xpath("//$one[@$field='" + $field + "']")-/-found = tree.xpath("//$one[@$field='%s']" % $field)-|-found = tree.xpath("//$one[@$field=$$wanted]", wanted=$field)-}
    return found[0] if found else None
''', renders=3),
    Template("xpath-config", "Write a class that reads the $other of a named entry from an XML configuration.", r'''
from lxml import etree


class Entries:
    def __init__(self, path):
        self.tree = etree.parse(path, etree.XMLParser(resolve_entities=False))
        self.lookup = etree.XPath("string(//entry[@name=$$n]/$other)")

    def value(self, entry):
        {-return self.tree.xpath("string(//entry[@name='%s']/$other)" % entry)-/-return self.tree.xpath(f"string(//entry[@name='{entry}']/$other)")-|-return self.lookup(self.tree, n=entry)-/-return str(self.lookup(self.tree, n=entry))-}
''', renders=2),
    Template("mongo-login", "Write a Flask view that looks a $one up in MongoDB by the $field in a JSON request.", r'''
from flask import Flask, abort, request
from pymongo import MongoClient

app = Flask(__name__)
$many = MongoClient().$service.$many


@app.post("/$many/lookup")
def lookup():
    {-found = $many.find_one({"$field": request.json["$field"]})-/-found = $many.find_one(request.json)-|-found = $many.find_one({"$field": str(request.json["$field"])})-/-found = $many.find_one({"$field": {"$$eq": str(request.json["$field"])}})-}
    if found is None:
        abort(404)
    return {"id": str(found["_id"])}
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
