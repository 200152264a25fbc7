import hashlib
import os


