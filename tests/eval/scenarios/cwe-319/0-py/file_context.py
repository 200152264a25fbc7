import smtplib
from email.message import EmailMessage

HOST = "mail.example.com"


