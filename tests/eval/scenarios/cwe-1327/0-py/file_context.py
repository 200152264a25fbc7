import socket

PORT = 9999


