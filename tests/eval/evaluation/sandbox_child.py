"""Closes the sandbox from inside and starts the program in it.

The parent hands this text to `python -I -S -c`, inside fresh namespaces where there are such, and a specification as
JSON on standard input. It imports nothing of the tool, as the tool's own folder may be out of reach by then. Each
step's outcome goes to standard error only where the program cannot be started.
"""
import ctypes
import json
import os
import resource
import sys

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
# Access rights by the version of Landlock's interface that brought them, lowest bit first.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
MS_NOSUID, MS_NODEV, MS_BIND = 2, 4, 4096
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
libc = ctypes.CDLL(None, use_errno=True)


class RulesetAttribute(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def succeed(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what + ": " + os.strerror(ctypes.get_errno()))
    return result


def mount(source, target, kind, flags, options=""):
    succeed(libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), "mount " + target)


def mount_memory(folder, options):
    """Mounts a file system in memory."""
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)


def reveal(paths):
    """Makes `paths` reachable for others than root, whose home they may lie in; what lies beside them is hidden instead."""
    closed = set()
    for path in paths:
        parts = os.path.realpath(path).split("/")
        ancestors = ["/".join(parts[:count]) for count in range(2, len(parts))]
        closed.update([a for a in ancestors if not os.stat(a).st_mode & 1][:1])
    for ancestor in closed:
        inside = sorted({os.path.realpath(path) for path in paths if os.path.realpath(path).startswith(ancestor + "/")})
        opened = [(path, os.open(path, os.O_PATH)) for path in inside]
        mount_memory(ancestor, "size=1048576,mode=0755")
        for path, handle in opened:
            os.makedirs(path, exist_ok=True)
            mount(f"/proc/self/fd/{handle}", path, "none", MS_BIND)
            os.close(handle)


def set_limits(limits):
    for name, value in limits.items():
        if value is not None:
            resource.setrlimit(getattr(resource, name), (value, value))


def restrict_files(readable, writable):
    """Allows reading below `readable`, everything below `writable`, nothing else, and no TCP; says whether it could."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(LANDLOCK_CREATE_RULESET_VERSION))
    if version < 1:
        return False
    every = (1 << max(bits for since, bits in FILE_RIGHTS.items() if since <= version)) - 1
    attribute = RulesetAttribute(every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = succeed(libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attribute), ctypes.c_size_t(size), ctypes.c_uint32(0)), "landlock")
    for paths, rights in ((readable, EXECUTE | READ_FILE | READ_DIR), (writable, every)):
        for path in paths:
            try:
                parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            # Rights to folders mean nothing for a file, and are refused.
            possible = every if os.path.isdir(path) else every & (EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE)
            rule = PathBeneath(rights & possible, parent)
            succeed(libc.syscall(LANDLOCK_ADD_RULE, rules, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0)), path)
            os.close(parent)
    succeed(libc.syscall(LANDLOCK_RESTRICT_SELF, rules, ctypes.c_uint32(0)), "landlock_restrict_self")
    os.close(rules)
    return True


def write_files(files, standard_input):
    """Writes the program's files, and opens its standard input."""
    for name, text in {**files, ".stdin": standard_input}.items():
        with open(name, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    handle = os.open(".stdin", os.O_RDONLY)
    os.unlink(".stdin")
    os.dup2(handle, 0)
    os.close(handle)


def drop_privileges(user):
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    succeed(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def main():
    specification = json.load(sys.stdin)
    folder, user = specification["folder"], specification["user"]
    if specification["namespaces"]:
        owner = f",uid={user},gid={user}" if user is not None else ""
        mount_memory(folder, f"size={specification['folder_bytes']},nr_inodes=4096,mode=0700{owner}")
        # Sockets of the host's services lie here, and Landlock does not keep a program from connecting to them.
        mount_memory("/run", "size=4096,nr_inodes=16,mode=0755")
    if user is not None:
        reveal(specification["python"])
    drop_privileges(user)
    os.chdir(folder)
    write_files(specification["files"], specification["stdin"])
    restrict_files([*specification["python"], *specification["readable"]], [folder, "/dev/null"])
    set_limits(specification["limits"])
    environment = {**specification["environment"], "HOME": folder, "TMPDIR": folder}
    os.execve(specification["argv"][0], specification["argv"], environment)


main()
