"""Hostile programs: each is stopped, touches nothing outside, and leaves no process behind."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdslora.app.errors import UserError
from sdslora.app.evaluation import sandbox
from sdslora.app.evaluation.sandbox import Limits, Outcome

QUICK = Limits(cpu_seconds=1, wall_seconds=30.0)
PATIENT = Limits(cpu_seconds=30, wall_seconds=60.0)  # of one that walks through all it can see
BRIEF = Limits(cpu_seconds=5, wall_seconds=1.5)  # of those that only waiting ends


def alive(mark: str) -> list[str]:
    """Command lines of the processes that have ``mark`` as an argument; a child inherits it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if mark in arguments:
            found.append(" ".join(arguments))
    return found


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in the current directory, below /tmp, that must survive unchanged and alone."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    path.write_text("alive")
    yield path
    assert path.read_text() == "alive"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def mark() -> Iterator[str]:
    """An argument that tells a test's processes from all others; none may outlive the test."""
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    assert alive(mark) == []


def run(program: str, canary: Path, mark: str, limits: Limits = QUICK) -> Outcome:
    result = sandbox.run(["-c", program, mark, str(canary)], limits)
    assert alive(mark) == [], "something outlived its program"
    return result


def test_a_harmless_program_is_run_and_its_output_and_status_come_back(canary, mark) -> None:
    assert run("print('hello'); raise SystemExit(3)", canary, mark) == Outcome(3, "hello\n", False)


def test_an_infinite_loop_ends_by_the_limit_on_processor_time(canary, mark) -> None:
    result = run("while True: pass", canary, mark)
    assert (result.status, result.timed_out) == (128 + 9, False)


def test_sleeping_forever_ends_by_the_wall_clock(canary, mark) -> None:
    assert run("import time; time.sleep(1000)", canary, mark, BRIEF).timed_out


def test_closing_its_output_does_not_hide_a_program(canary, mark) -> None:
    program = "import os, time; os.closerange(0, 32); time.sleep(1000)"
    assert run(program, canary, mark, BRIEF).timed_out


FORKING = """
import os, time
children = 0
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError as error:
        print(type(error).__name__, children)
        break
    children += 1
"""


def test_processes_are_few_and_end_with_the_first(canary, mark) -> None:
    result = run(FORKING, canary, mark)
    name, children = result.output.split()
    assert name == "BlockingIOError"
    assert int(children) < QUICK.processes


def test_a_fork_bomb_explodes_within_its_limit(canary, mark) -> None:
    program = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    result = run(program, canary, mark, BRIEF)
    assert result.status != 0


def test_threads_count_as_processes(canary, mark) -> None:
    program = (
        "import threading, time\nfor n in range(40): "
        "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    assert "can't start new thread" in run(program, canary, mark).output


DAEMON = """
import os, signal, sys, time
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 32)
        while True:
            time.sleep(1)
    os._exit(0)
os._exit(0)
"""


def test_a_daemon_that_left_its_session_and_ignores_signals_dies_with_its_program(
    canary, mark
) -> None:
    assert run(DAEMON, canary, mark).status == 0


def test_ignoring_signals_and_killing_everybody_in_reach_kills_only_the_program(
    canary, mark
) -> None:
    program = (
        "import os, signal\nsignal.signal(15, signal.SIG_IGN)\n"
        "for pid in (1, os.getppid(), -1):\n"
        "  for number in (15, 9):\n"
        "    try: os.kill(pid, number)\n"
        "    except OSError: pass\n"
        "print('still here', flush=True)\nwhile True: pass"
    )
    result = run(program, canary, mark)
    assert result.output.startswith("still here\n")
    assert (result.status, result.timed_out) == (128 + 9, False)


def test_memory_is_limited(canary, mark) -> None:
    program = "held = []\nfor n in range(100): held.append(bytearray(2**26)); print(n)"
    result = run(program, canary, mark)
    assert "MemoryError" in result.output
    assert result.output.count("\n") < 12  # 8 blocks of 64 MiB, and the traceback


FILLING = """
import os
written = 0
try:
    for number in range(1000):
        with open(f"{number}", "wb") as file:
            written += file.write(bytes(2**20))
except OSError as error:
    print(error.errno, written >> 20)
"""


def test_files_are_few_and_in_memory(canary, mark) -> None:
    result = run(FILLING, canary, mark)
    errno, mebibytes = map(int, result.output.split())
    assert errno == 28  # no space left
    assert mebibytes <= 16


def test_one_file_is_limited(canary, mark) -> None:
    result = run("open('file', 'wb').write(bytes(9 * 2**20))", canary, mark)
    assert "File too large" in result.output


def test_open_files_are_limited(canary, mark) -> None:
    program = "held = [open('/dev/null') for n in range(100)]"
    assert "Too many open files" in run(program, canary, mark).output


def test_output_is_cut(canary, mark) -> None:
    result = run("for n in range(400): print('x' * 2**16)", canary, mark)
    assert (len(result.output), result.status) == (QUICK.output_bytes, 0)


def test_deleting_everything_deletes_nothing_outside(canary, mark) -> None:
    program = (
        "import os, shutil, sys\n"
        "for path in (sys.argv[2], os.path.dirname(sys.argv[2]), '/tmp', os.path.expanduser('~'),"
        " sys.base_prefix, '/'):\n  shutil.rmtree(path, ignore_errors=True)\n"
        "  try: os.remove(path)\n  except OSError: pass\n"
        "print(os.path.exists(sys.argv[2]), os.path.exists(os.__file__))"
    )
    assert run(program, canary, mark, PATIENT).output == "False True\n"
    assert Path(os.__file__).exists()


def test_writing_outside_its_directory_is_refused(canary, mark) -> None:
    program = (
        "import os, sys\n"
        "for path in (sys.argv[2], sys.base_prefix + '/planted', '/usr/planted', os.__file__):\n"
        "  try: open(path, 'a').write('planted'); print('wrote', path)\n"
        "  except OSError as error: print(error.errno)"
    )
    output = run(program, canary, mark).output.split()
    assert output[0] == "2"  # the canary is not even there
    assert set(output[1:]) <= {"13", "30"}, output  # no permission, or read-only


def test_links_lead_nowhere(canary, mark) -> None:
    program = (
        "import os, sys\n"
        "for path in (sys.argv[2], '/../../../..' + sys.argv[2], '/etc/passwd'):\n"
        "  os.symlink(path, 'link')\n"
        "  try: open('link', 'r+').write('x'); print('wrote', path)\n"
        "  except OSError as error: print(error.errno)\n"
        "  os.remove('link')"
    )
    assert run(program, canary, mark).output.split() == ["2", "2", "2"]


@pytest.mark.network
@pytest.mark.parametrize("family", ["inet", "abstract"])
def test_there_is_no_network(canary, mark, family: str) -> None:
    if family == "inet":
        server = socket.create_server(("127.0.0.1", 0))
        connect = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"\0{mark}")
        server.listen()
        connect = f"socket.socket(socket.AF_UNIX).connect(chr(0) + '{mark}')"
    with server:
        server.settimeout(0.2)
        result = run(f"import socket; {connect}; print('connected')", canary, mark)
        assert result.status == 1
        assert "Error" in result.output
        with pytest.raises(TimeoutError):
            server.accept()


def test_limits_cannot_be_raised(canary, mark) -> None:
    program = (
        "import resource as r\n"
        "for name in ('AS', 'CPU', 'FSIZE', 'NPROC', 'NOFILE', 'CORE'):\n"
        "  which = getattr(r, f'RLIMIT_{name}')\n"
        "  for value in (r.getrlimit(which)[1] + 1, r.RLIM_INFINITY):\n"
        "    try: r.setrlimit(which, (value, value)); print('raised', name)\n"
        "    except (ValueError, OSError): pass"
    )
    assert run(program, canary, mark) == Outcome(0, "", False)


REGAINING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for name, call in {
    "user namespace": lambda: libc.unshare(0x10000000),
    "mount namespace": lambda: libc.unshare(0x00020000),
    "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    "remount": lambda: libc.mount(None, b"/usr", None, 0x1020, None),
    "unmount": lambda: libc.umount2(b"/usr", 2),
    "chroot": lambda: libc.chroot(b"/tmp"),
    "setuid": lambda: libc.setgroups(1, (ctypes.c_uint * 1)(0)),
    "ptrace": lambda: libc.ptrace(16, 1, None, None),
    "mknod": lambda: libc.mknod(b"/tmp/disk", 0o60666, 0x0800),
}.items():
    print(name, call())
"""


def test_rights_do_not_come_back(canary, mark) -> None:
    lines = run(REGAINING, canary, mark).output.splitlines()
    assert len(lines) == 9
    assert [line for line in lines if not line.endswith(" -1")] == []


def test_nothing_is_there_to_be_read(canary, mark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = (
        "import os, sys\n"
        "print(os.listdir('/tmp'), [p for p in ('/proc', '/etc', '/sys', sys.argv[2])"
        " if os.path.exists(p)], sorted(set(os.environ) - {'LC_CTYPE'}),"
        " sorted(os.listdir('/dev')))\n"
        "for fd in range(3, 32):\n"
        "  try: os.fstat(fd); print('open', fd)\n"
        "  except OSError: pass"
    )
    hidden = sandbox._hidden_paths()
    assert hidden, "the packages of this interpreter are somewhere"
    seen = f"\nprint(sum((os.listdir(path) for path in {hidden!r}), []))"
    output = run(program + seen, canary, mark).output.splitlines()
    assert output == ["[] [] [] ['null', 'urandom', 'zero']", "[]"]


def test_killing_the_evaluation_kills_its_sandboxes(mark) -> None:
    sleeping = ["-c", "import time; time.sleep(1000)", mark]
    parent = multiprocessing.get_context("fork").Process(target=sandbox.run, args=(sleeping,))
    parent.start()
    try:
        _until(lambda: alive(mark))
    finally:
        parent.kill()
        parent.join()
    _until(lambda: not alive(mark))


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_uncontained_program_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.require()
    monkeypatch.setattr(sandbox, "_SETUP", 'shift 2; exec "$@"')
    with pytest.raises(UserError, match="cannot be contained here"):
        sandbox.require()


def test_a_system_without_the_tools_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_TOOLS", ("unshare", "no-such-tool"))
    with pytest.raises(UserError, match=r"not found: no-such-tool"):
        sandbox.require()
