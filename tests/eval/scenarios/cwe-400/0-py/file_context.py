import requests

RATES = "https://rates.example.com/latest"


