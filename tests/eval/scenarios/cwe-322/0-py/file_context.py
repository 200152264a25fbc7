import paramiko


