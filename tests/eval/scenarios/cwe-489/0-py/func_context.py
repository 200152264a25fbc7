def main():
    # start the web application on port 8080 of the server