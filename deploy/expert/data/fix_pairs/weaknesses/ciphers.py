"""CWE-327: ciphers, modes and protocols that no longer protect."""
from ..template import Template

WEAKNESS = "CWE-327"
TEMPLATES = [
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
    Template("key-size", "Write a function that makes a new key pair for signing $many.", r'''
from cryptography.hazmat.primitives.asymmetric import {?rsa-/-dsa, rsa?}


def new_signing_key():
    """A fresh private key; the public one is stored with the $one."""
    {-return rsa.generate_private_key(public_exponent=65537, key_size=1024)-/-return rsa.generate_private_key(public_exponent=3, key_size=512)-|-return rsa.generate_private_key(public_exponent=65537, key_size=3072)-/-return rsa.generate_private_key(public_exponent=65537, key_size=4096)-}
''', renders=2),
    Template("static-iv", "Write a function that encrypts a file of $many with AES-CBC.", r'''
import os

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def encrypt_file(key, source, target):
    {-iv = b"\x00" * 16-/-iv = b"0123456789abcdef"-/-iv = key[:16]-|-iv = os.urandom(16)-}
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    with open(source, "rb") as plain, open(target, "wb") as sealed:
        sealed.write(iv)
        sealed.write(encryptor.update(padder.update(plain.read()) + padder.finalize()))
        sealed.write(encryptor.finalize())
''', renders=3),
    Template("home-made", "Write a function that hides a token of a $one before it is stored.", r'''
import base64

from cryptography.fernet import Fernet


def protect(token, key):
    {-mixed = bytes(b ^ key[i % len(key)] for i, b in enumerate(token.encode()))
    return base64.b64encode(mixed).decode()-/-return base64.b64encode(token.encode()[::-1]).decode()-|-return Fernet(key).encrypt(token.encode()).decode()-}
''', renders=2, held_out=True),
]
