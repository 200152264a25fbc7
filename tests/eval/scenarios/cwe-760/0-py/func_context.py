def hash_password(password):
    # derive the hash with PBKDF2 or scrypt and a salt; return both