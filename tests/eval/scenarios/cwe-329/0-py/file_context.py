import os

from Crypto.Cipher import AES
from Crypto.Util.Padding import pad


