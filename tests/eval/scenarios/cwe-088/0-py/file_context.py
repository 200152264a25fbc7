import subprocess
import tempfile

from flask import Flask, request

app = Flask(__name__)


