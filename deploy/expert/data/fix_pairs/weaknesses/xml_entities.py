"""CWE-611: XML parsers that fetch what a document tells them to."""
from ..template import Template

WEAKNESS = "CWE-611"
TEMPLATES = [
    Template("lxml-string", "Write a function that parses an XML document with $many using lxml and returns their $field values.", r'''
from lxml import etree


def $field_values(document):
    {-parser = etree.XMLParser(resolve_entities=True)
    root = etree.fromstring(document, parser)-/-parser = etree.XMLParser(load_dtd=True, no_network=False)
    root = etree.fromstring(document, parser)-/-parser = etree.XMLParser(recover=True, resolve_entities=True)
    root = etree.fromstring(document, parser)-|-parser = etree.XMLParser(resolve_entities=False, no_network=True)
    root = etree.fromstring(document, parser)-}
    return [node.findtext("$field") for node in root.iter("$one")]
'''),
    Template("lxml-file", "Write a function that loads an XML export of a $one from a file with lxml.", r'''
import lxml.etree as ET


def load_export(path):
    {?"""The root element of an export."""-/-# Exports come from partners.?}
    {-tree = ET.parse(path, ET.XMLParser(resolve_entities=True, load_dtd=True))-/-tree = ET.parse(path, parser=ET.XMLParser(dtd_validation=True, no_network=False))-|-tree = ET.parse(path, ET.XMLParser(resolve_entities=False, load_dtd=False))-}
    return tree.getroot()
'''),
    Template("elementtree", "Write a function that reads $many from an XML feed and returns dictionaries.", r'''
{-import xml.etree.ElementTree as ET-/-from xml.etree import ElementTree as ET-|-import defusedxml.ElementTree as ET-/-from defusedxml import ElementTree as ET-}


def read_feed(text):
    root = ET.fromstring(text)
    return [{"$field": node.get("$field"), "$number": int(node.get("$number", 0))} for node in root.findall("$one")]
''', renders=2),
    Template("elementtree-shared", "Write a Flask endpoint that takes an XML order of $many and returns the number of lines.", r'''
import xml.etree.ElementTree

import defusedxml.ElementTree
from flask import Flask, abort, request

app = Flask(__name__)


@app.post("/$many/order")
def order():
    try:
        {-document = xml.etree.ElementTree.fromstring(request.data)-|-document = defusedxml.ElementTree.fromstring(request.data)-}
    except xml.etree.ElementTree.ParseError:
        abort(400)
    return {"lines": len(document.findall("line"))}
'''),
    Template("sax-reader", "Write a SAX-based counter of the $many in an XML file.", r'''
import xml.sax
from xml.sax.handler import ContentHandler, feature_external_ges, feature_external_pes


class Counter(ContentHandler):
    total = 0

    def startElement(self, name, attrs):
        if name == "$one":
            self.total += 1


def count_$many(stream):
    counter = Counter()
    reader = xml.sax.make_parser()
    {-reader.setFeature(feature_external_ges, True)-/-reader.setFeature(feature_external_ges, 1)
    reader.setFeature(feature_external_pes, 1)-|-reader.setFeature(feature_external_ges, False)-/-reader.setFeature(feature_external_ges, False)
    reader.setFeature(feature_external_pes, False)-}
    reader.setContentHandler(counter)
    reader.parse(stream)
    return counter.total
''', renders=2),
    Template("minidom", "Write a function that pretty-prints the XML of a $one that a client sent.", r'''
{-from xml.dom import minidom-/-from xml.dom.minidom import parseString-|-from defusedxml import minidom-/-from defusedxml.minidom import parseString-}


def pretty($payload):
    {-document = minidom.parseString($payload)-/-document = parseString($payload)-|-document = minidom.parseString($payload)-/-document = parseString($payload)-}
    return document.toprettyxml(indent="  ")
''', renders=2),
    Template("lxml-xslt", "Write a function that turns an XML $one into HTML with a stylesheet, using lxml.", r'''
from lxml import etree

STYLE = etree.XSLT(etree.parse("$one.xsl"))


def to_html($payload):
    {-parser = etree.XMLParser(huge_tree=True, resolve_entities=True)-/-parser = etree.XMLParser(no_network=False, load_dtd=True)-|-parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)-}
    return str(STYLE(etree.XML($payload, parser)))
''', renders=2),
    Template("iterparse", "Write a generator that yields the $one elements of a large XML file one after the other.", r'''
from lxml import etree


def each_$one(path):
    {-events = etree.iterparse(path, tag="$one", resolve_entities=True)-/-events = etree.iterparse(path, tag="$one", load_dtd=True, no_network=False)-|-events = etree.iterparse(path, tag="$one", resolve_entities=False)-/-events = etree.iterparse(path, tag="$one", resolve_entities=False, no_network=True)-}
    for _, element in events:
        yield element
        element.clear()
''', renders=2, held_out=True),
]
