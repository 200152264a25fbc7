from flask import Flask, request
from lxml import etree

app = Flask(__name__)
users = etree.parse("users.xml")


