def encrypt(key, data):
    # encrypt the data with AES in CBC mode