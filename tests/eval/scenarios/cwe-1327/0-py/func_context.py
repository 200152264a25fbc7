def open_control_socket():
    """Return a listening TCP socket over which a program on this machine can stop the service."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)