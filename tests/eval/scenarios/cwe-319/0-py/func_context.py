def send(user, password, recipient, text):
    message = EmailMessage()
    message["From"] = user
    message["To"] = recipient
    message.set_content(text)
    # log in at the mail server and send the message