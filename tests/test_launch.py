"""The launcher: exit codes, what is said where, signals passed on once, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jaxdl.distributed.processes import LOST, VARIABLES
from tests.groups import LIGHT

ROOT = Path(__file__).parent.parent
WHO = "import os, signal, sys, time\nown = int(os.environ['JAXDL_PROCESS_ID'])\n"


# As `-m jaxdl.launch` does, which two tests begin with, but seconds sooner.
LAUNCH = LIGHT + "import runpy\nrunpy.run_module('jaxdl.launch', run_name='__main__', alter_sys=True)"


def call(*flags, code):
    return [sys.executable, "-c", LAUNCH, *flags, "--", "-c", WHO + code]


def run(*flags, code, **more):
    return subprocess.run(call(*flags, code=code), capture_output=True, text=True, timeout=60, cwd=ROOT, **more)


@contextmanager
def launcher(*flags, code):
    """The launcher at work, with SIGINT as in a terminal; each of its processes says its pid and "ready"."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        call(*flags, code=code), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def ready(process, number=2):
    """The pids of its processes, all of which are ready."""
    lines = [process.stdout.readline().split() for _ in range(number)]
    assert all(words[-1] == "ready" for words in lines), lines
    return [int(words[-2]) for words in lines]


def alive(pid):
    with suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_first_process_has_the_terminal_and_the_others_a_number():
    code = f"""
print([os.environ[name] for name in {VARIABLES[1:]}], sys.stdin.read(), len(sys.argv), sys.argv[-1])
sys.stderr.write("end")
"""
    call_ = [*call("-n", "3", code=code), "--flag", "-n 7"]
    done = subprocess.run(call_, capture_output=True, text=True, timeout=60, cwd=ROOT, input="typed")
    assert done.returncode == 0 and done.stdout == "['3', '0'] typed 3 -n 7\n"
    lines = done.stderr.replace("end[", "end\n[").removesuffix("end").splitlines()
    assert sorted(text for text in lines if text != "end") == [
        "[1] ['3', '1']  3 -n 7",
        "[1] end",
        "[2] ['3', '2']  3 -n 7",
        "[2] end",
    ]


def test_what_a_process_writes_comes_line_by_line_while_it_runs():
    with launcher(code="print(os.getpid(), 'ready')\nsys.stdout.flush()\ntime.sleep(60)") as process:
        assert len(set(ready(process))) == 2


@pytest.mark.parametrize(
    ("code", "exit_code", "output"),
    [
        ("sys.exit(3 if own == 1 else 0)", 3, "process 1 ended with exit code 3.\n"),
        ("os.kill(os.getpid(), 9 if own == 0 else 0)", 137, "process 0 was killed by SIGKILL.\n"),
        # One that has only lost another is not the one that failed.
        (f"time.sleep(own)\nsys.exit(4 if own else {LOST})", 4, "process 1 ended with exit code 4.\n"),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed(code, exit_code, output):
    done = run(code=code)
    assert (done.returncode, done.stderr) == (exit_code, output)


@pytest.mark.processes
def test_after_a_failure_the_others_have_a_time_then_sigterm_then_sigkill(tmp_path):
    code = f"""
signal.signal(signal.SIGTERM, lambda *_: open({str(tmp_path)!r} + f"/{{own}}", "w").close())
if own == 2:
    sys.exit(5)
while True:
    time.sleep(0.1)
"""
    began = time.monotonic()
    done = run("-n", "3", "--grace", "1", code=code)
    assert 6 < time.monotonic() - began < 20
    assert done.returncode == 5 and sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert done.stderr == "process 2 ended with exit code 5.\nprocess 0, 1 still running 1 seconds later: ended.\n"


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_each_process_once(number):
    code = f"""
came = []
for number in ({int(number)}, {int(signal.SIGUSR1)}):
    signal.signal(number, lambda number, _: came.append(number))
print(os.getpid(), 'ready', flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.5)
print("came", came, flush=True)
sys.exit(128 + {int(number)})
"""
    # As in a terminal: whoever runs the tests may have chosen to ignore it, which children inherit.
    before = signal.signal(number, signal.SIG_DFL)
    with launcher(code=code) as process:
        signal.signal(number, before)
        ready(process)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 128 + number
        assert sorted(rest.splitlines()) == [f"[1] came [{int(number)}]", f"came [{int(number)}]"]


@pytest.mark.processes
def test_ctrl_c_in_a_terminal_reaches_each_process_once():
    import pty

    code = """
came = []
signal.signal(signal.SIGINT, lambda *_: came.append(1))
print('ready', sys.stdout.isatty(), flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.5)
print("came", len(came), flush=True)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Whoever runs the tests may have chosen to ignore it.
        os.chdir(ROOT)
        os.execv(sys.executable, call(code=code))
    output, sent = b"", False
    with suppress(OSError):  # Linux's way to say that nobody is left at the other side.
        while text := os.read(terminal, 1000):
            output += text
            if output.count(b"ready") == 2 and not sent:
                os.write(terminal, b"\x03")
                sent = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert output.count(b"came 1") == output.count(b"came") == 2
    # Process 0 has the terminal, the other one has not.
    assert output.count(b"True") == output.count(b"False") == 1


@pytest.mark.processes
def test_no_process_outlives_a_launcher_that_is_killed():
    with launcher(code="print(os.getpid(), 'ready', flush=True)\ntime.sleep(60)") as process:
        pids = ready(process)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        for _ in range(500):
            if not any(map(alive, pids)):
                break
            time.sleep(0.01)
        assert not any(map(alive, pids))


def test_the_cores_are_shared_out_where_there_are_enough():
    cores = os.sched_getaffinity(0)
    code = "print(*sorted(os.sched_getaffinity(0)))"
    for flags in (["-n", str(len(cores)), "--pin"], ["-n", str(len(cores) + 1), "--pin"], ["-n", "2"]):
        done = run(*flags, code=code)
        lines = (done.stdout + done.stderr).splitlines()
        shares = [{int(core) for core in text.split("]")[-1].split()} for text in lines]
        if flags == ["-n", str(len(cores)), "--pin"]:
            assert sorted(map(sorted, shares)) == [[core] for core in sorted(cores)]
        else:
            assert shares == [cores] * int(flags[1])


@pytest.mark.parametrize(
    ("flags", "output"),
    [
        (["-n", "0", "--", "x.py"], "error: argument -n/--processes: must be a whole number, at least 1, got '0'."),
        (["-n", "two", "--", "x.py"], "error: argument -n/--processes: must be a whole number, at least 1, got 'two'."),
        (["--grace", "nan", "--", "x.py"], "error: argument --grace: must be a number, at least 0, got 'nan'."),
        (["-n", "2"], "error: a program must be given after --"),
        (["-n", "2", "--"], "error: a program must be given after --"),
        (["--cores", "--", "x.py"], "error: "),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(capsys, flags, output):
    from jaxdl import launch

    with pytest.raises(SystemExit) as raised:
        launch.main(flags)
    message = capsys.readouterr()
    assert raised.value.code == 2 and message.out == ""
    assert message.err.startswith(output) and message.err.count("\n") == 1


def test_the_help_fits_80_columns():
    done = subprocess.run(
        [sys.executable, "-m", "jaxdl.launch", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert done.returncode == 0 and all(name in done.stdout for name in ("-n N", "--grace SECONDS", "--pin", "-- "))
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.processes
def test_what_is_started_joins_and_a_killed_process_is_named_by_both():
    code = """
from jaxdl import distributed
from jaxdl.distributed import processes
distributed.initialize()
print(processes.broadcast_text(f"from {own}"), processes.all_gather([own]).tolist(), flush=True)
if own == 1:
    time.sleep(1)  # in which the other prints
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    program = [sys.executable, "-m", "jaxdl.launch", "--", "-c", WHO + code]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert "from 0 [[0], [1]]\n" in done.stdout and "[1] from 0 [[0], [1]]\n" in done.stderr
    assert "has ended, so process 0 ends too." in done.stderr and "process 1 was killed by SIGKILL.\n" in done.stderr
    assert done.returncode == 137
