def new_key():
    # generate an RSA key pair