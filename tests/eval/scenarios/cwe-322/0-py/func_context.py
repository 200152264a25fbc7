def disk_usage(host, user):
    client = paramiko.SSHClient()
    # connect to the host and return what "df -h" prints there