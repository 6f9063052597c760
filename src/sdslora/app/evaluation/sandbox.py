"""A sandbox for untrusted Python code.

Each program gets Linux namespaces of its own through util-linux's ``unshare``. It sees no other
process and no network. Of the file system it sees only the interpreter and system libraries,
read-only, and an empty ``/tmp`` in memory. It runs without privileges, without environment, and
within the kernel's limits of time, memory, processes and files. When it ends, or its time is up,
the kernel kills whatever it started and discards whatever it wrote.

Where the system does not allow such namespaces, nothing is run, and :func:`require` says why. The
sandbox does not protect against a flaw in the kernel itself.
"""

import os
import selectors
import shutil
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import UserError

_MIB = 2**20
_TOOLS = ("unshare", "mount", "chroot", "setpriv", "prlimit", "env", "sh")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_NOBODY = "65534"
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64")

# Runs as the first process of the new namespaces. $1 are the directories to show, one a line, $2
# those of them to show empty, and the rest is the program. Everything is mounted below a tmpfs, so
# nothing of it ever reaches a disk.
_SETUP = """
set -e
directories=$1 hidden=$2; shift 2
mount -t tmpfs -o size=16m,nr_inodes=2000,mode=755 sandbox /tmp
mkdir -m 1777 /tmp/tmp
mkdir /tmp/dev
for name in null zero urandom; do
    : > /tmp/dev/$name
    mount --bind /dev/$name /tmp/dev/$name
done
IFS='
'
for path in $directories; do
    if [ -L "$path" ]; then
        ln -s "$(readlink "$path")" "/tmp$path"
    else
        mkdir -p "/tmp$path"
        mount --bind "$path" "/tmp$path"
        mount -o remount,bind,ro,nosuid,nodev "/tmp$path"
    fi
done
for path in $hidden; do
    mount -t tmpfs -o ro,size=4k hidden "/tmp$path"
done
# Not exec: this shell stays the first process, which the program can neither kill nor trace.
# In a changed root the kernel rejects new user namespaces, through which rights would come back.
chroot /tmp "$@"
"""

# A program that reports whether it is contained, and its output if it is.
_PROBE = """
import os, socket
print(os.listdir("/tmp"), os.path.exists("/proc"), os.access("/usr", os.W_OK),
      [name for _, name in socket.if_nameindex()])
"""
_CONTAINED_OUTPUT = "[] False False ['lo']"


@dataclass(frozen=True)
class Limits:
    """The limits on one program.

    Attributes:
        cpu_seconds: of each of its processes.
        wall_seconds: from start to end, everything it started included.
        memory_bytes: address space of each of its processes.
        file_bytes: largest file. All its files together have 16 MiB.
        processes: at the same time, threads included.
        files: open at the same time in one process.
        output_bytes: of its output; the rest is read and dropped.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 20.0
    memory_bytes: int = 512 * _MIB
    file_bytes: int = 8 * _MIB
    processes: int = 8
    files: int = 32
    output_bytes: int = 2**16


@dataclass(frozen=True)
class Outcome:
    """The end of a program.

    Attributes:
        status: exit status; 128 + the signal's number where a signal ended it.
        output: its output, cut.
        timed_out: whether it reached its wall-clock limit.
    """

    status: int
    output: str
    timed_out: bool


def require() -> None:
    """Raise ``UserError`` where programs cannot be contained here, with the reason and a way out.

    It runs a program and checks what that sees: the presence of the tools does not show that the
    system lets them work.
    """
    absent = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if not sys.platform.startswith("linux") or absent:
        raise UserError(
            "generated code is run in Linux namespaces only, through util-linux"
            f"{' (not found: ' + ', '.join(absent) + ')' if absent else ''}; evaluate on a Linux "
            "machine, or leave out the tasks that run code"
        )
    probe = run(["-c", _PROBE])
    if probe.output.strip() != _CONTAINED_OUTPUT:
        raise UserError(
            "generated code cannot be contained here: this system does not allow the namespaces "
            f"({' '.join(probe.output.split())[:200]}). A container needs the right to make them "
            "(docker run --security-opt seccomp=unconfined --cap-add SYS_ADMIN); some systems need "
            "`sysctl kernel.unprivileged_userns_clone=1`, and Ubuntu needs "
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`. Or leave out the tasks that "
            "run code"
        )


def run(arguments: Sequence[str], limits: Limits = Limits()) -> Outcome:
    """Run the interpreter with these arguments to its end, output and errors together.

    Raises:
        OSError: where an argument is longer than the kernel takes (128 KiB).
    """
    with interpreter(arguments, limits, stderr=subprocess.STDOUT) as process:
        return outcome(process, process.stdout, limits)


@contextmanager
def interpreter(
    arguments: Sequence[str],
    limits: Limits,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.PIPE,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the block with a sandboxed interpreter (``python -I -S``), and kill it afterwards."""
    process = subprocess.Popen(
        _command(arguments, limits),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={"PATH": _PATH},
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def outcome(process: subprocess.Popen[bytes], pipe: IO[bytes] | None, limits: Limits) -> Outcome:
    """Read ``pipe`` until the process ends or its time is up, then kill all that remains."""
    assert pipe is not None
    deadline = time.monotonic() + limits.wall_seconds
    output, timed_out = bytearray(), False
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(pipe.fileno(), 2**16)
            if not part:
                break
            output += part[: limits.output_bytes - len(output)]
            if time.monotonic() > deadline:
                break
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        timed_out = True
    status = _end(process)
    return Outcome(status, output.decode(errors="replace"), timed_out)


def _command(arguments: Sequence[str], limits: Limits) -> list[str]:
    is_root = os.geteuid() == 0
    # Root needs no user namespace to create the others, and must become a user to whom the limit on
    # processes applies. For other users it applies in a user namespace of their own.
    become_root = [] if is_root else ["--user", "--map-root-user"]
    become_nobody = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    size = {
        "cpu": limits.cpu_seconds,
        "as": limits.memory_bytes,
        "fsize": limits.file_bytes,
        "nproc": limits.processes,
        "nofile": limits.files,
        "core": 0,
    }
    interpreter = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    return [
        # Should this process be killed, its sandboxes are too.
        *("setpriv", "--pdeathsig=KILL", "--"),
        *("unshare", *become_root, "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child"),
        *("sh", "-c", _SETUP, "sandbox", "\n".join(_visible_paths()), "\n".join(_hidden_paths())),
        *("setpriv", *(become_nobody if is_root else []), "--no-new-privs"),
        *("--inh-caps=-all", "--bounding-set=-all", "--"),
        *("prlimit", *(f"--{name}={value}:{value}" for name, value in size.items()), "--"),
        *("env", "-i", "-C", "/tmp", interpreter, "-I", "-S", "-X", "utf8", *arguments),
    ]


def _visible_paths() -> list[str]:
    """Return the system's directories and the interpreter's, none within another."""
    paths = [path for path in _SYSTEM if os.path.exists(path)]
    for path in (sys.base_prefix, sys.base_exec_prefix):
        if not any(Path(path).is_relative_to(other) for other in paths):
            paths.append(os.path.realpath(path))
    return paths


def _hidden_paths() -> list[str]:
    """Return the directories of installed packages, which may hold data sets with answers."""
    scheme = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    paths = {sysconfig.get_path(kind, vars=scheme) for kind in ("purelib", "platlib")}
    paths |= {"/usr/lib/python3/dist-packages", *site.getsitepackages([sys.base_prefix])}
    visible = _visible_paths()
    return [
        path
        for path in sorted(paths)
        if os.path.isdir(path) and any(Path(path).is_relative_to(other) for other in visible)
    ]


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill the namespace's first process, and wait until the kernel has ended the others."""
    while process.poll() is None:
        # ``unshare`` itself reports the end only after that of everything in the namespace.
        for child in _children(process.pid) or [process.pid]:
            try:
                os.kill(child, 9)
            except ProcessLookupError:
                continue
        time.sleep(0.005)
    return process.returncode


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
