"""CWE-327: ciphers, modes and protocols that no longer protect."""
from ..template import Template

WEAKNESS = "CWE-327"
TEMPLATES = [
    Template("des-tokens", "Write a function that turns the number of a $one into a short token and back with a cipher.", r'''
import base64
import os

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305


def seal_number(key, number):
    {-encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    sealed = encryptor.update(number.to_bytes(16, "big")) + encryptor.finalize()-/-mask = int.from_bytes(key[:8], "big")
    sealed = (number ^ mask).to_bytes(8, "big")-|-nonce = os.urandom(12)
    sealed = nonce + ChaCha20Poly1305(key).encrypt(nonce, number.to_bytes(8, "big"), None)-}
    return base64.urlsafe_b64encode(sealed).decode()
''', renders=2),
    Template("redis-tls", "Write a function that makes the TLS options for a client of the $service cache.", r'''
import ssl


def tls_options(ca_file):
    {?context = ssl.create_default_context(cafile=ca_file)-/-context = ssl.create_default_context()
    context.load_verify_locations(ca_file)?}
    {-context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")-/-context.minimum_version = ssl.TLSVersion.TLSv1_1-|-context.minimum_version = ssl.TLSVersion.TLSv1_3-/-context.minimum_version = ssl.TLSVersion.TLSv1_2-}
    return {"ssl_context": context, "server_hostname": "$service.cache.internal"}
''', renders=3),
    Template("aes-mode", "Write functions that encrypt and decrypt the notes of a $one with AES from the cryptography package.", r'''
import os

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def encrypt_note(key, note):
    {-padder = padding.PKCS7(128).padder()
    padded = padder.update(note) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return encryptor.update(padded) + encryptor.finalize()-|-nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, note, None)-}


def decrypt_note(key, sealed):
    {-decryptor = Cipher(algorithms.AES(key), modes.ECB()).decryptor()
    padded = decryptor.update(sealed) + decryptor.finalize()
    unpadder = padding.PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()-|-return AESGCM(key).decrypt(sealed[:12], sealed[12:], None)-}
''', renders=2),
    Template("pycryptodome", "Write a class that encrypts exported $many with PyCryptodome.", r'''
from Crypto.Cipher import AES, ARC4, DES
from Crypto.Util.Padding import pad


class $clsExport:
    def __init__(self, key):
        self.key = key

    def seal(self, $payload):
        {-cipher = DES.new(self.key[:8], DES.MODE_ECB)
        return cipher.encrypt(pad($payload, DES.block_size))-/-cipher = ARC4.new(self.key)
        return cipher.encrypt($payload)-/-cipher = AES.new(self.key, AES.MODE_ECB)
        return cipher.encrypt(pad($payload, AES.block_size))-|-cipher = AES.new(self.key, AES.MODE_GCM)
        sealed, tag = cipher.encrypt_and_digest($payload)
        return cipher.nonce + tag + sealed-}
''', renders=3),
    Template("tls-version", "Write a function that opens a TLS connection to the $service service.", r'''
import socket
import ssl


def connect(host, port=443):
    {-context = ssl.SSLContext(ssl.PROTOCOL_TLSv1)
    context.load_default_certs()-/-context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1-/-context = ssl.create_default_context()
    context.set_ciphers("RC4-SHA:DES-CBC3-SHA:ALL")-|-context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2-/-context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3-/-context = ssl.create_default_context()
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")-}
    raw = socket.create_connection((host, port), timeout=10)
    return context.wrap_socket(raw, server_hostname=host)
''', renders=3),
    Template("server-context", "Write a function that makes the TLS context of an HTTPS server from a certificate and a key.", r'''
import ssl


def server_context(certificate, key):
    {-context = ssl.SSLContext(ssl.PROTOCOL_SSLv23)
    context.options &= ~ssl.OP_NO_SSLv3-/-context = ssl.SSLContext(ssl.PROTOCOL_TLSv1_1)-|-context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2-}
    context.load_cert_chain(certificate, key)
    return context
''', renders=2),
    Template("rsa-padding", "Write a function that encrypts a short secret of a $one for an RSA public key.", r'''
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding


def wrap_secret(public_key, secret):
    {-return public_key.encrypt(secret, padding.PKCS1v15())-|-return public_key.encrypt(
        secret,
        padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None),
    )-}
''', renders=1),
    Template("home-made", "Write a function that hides a token of a $one before it is stored.", r'''
import base64

from cryptography.fernet import Fernet


def protect(token, key):
    {-mixed = bytes(b ^ key[i % len(key)] for i, b in enumerate(token.encode()))
    return base64.b64encode(mixed).decode()-/-return base64.b64encode(token.encode()[::-1]).decode()-|-return Fernet(key).encrypt(token.encode()).decode()-}
''', renders=2, held_out=True),
]
