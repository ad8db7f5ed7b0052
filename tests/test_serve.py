import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A stand-in for the server: answers /health and notes its process id.
SERVER = (
    f"{sys.executable} -c \"import http.server, os; open('pid', 'w').write(str(os.getpid())); "
    "handler = type('H', (http.server.BaseHTTPRequestHandler,), {'do_GET': lambda self: (self.send_response(200), "
    "self.end_headers())}); http.server.HTTPServer(('127.0.0.1', {port}), handler).serve_forever()\""
)


@pytest.fixture
def start(tmp_path):
    def start(*command, server=SERVER):
        environment = {
            **os.environ,
            "SERVE": server,
            "SERVE_LOG": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "autoif.serving", "some/model", "--", *command],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # a job in the background ignores it

    return start


def gone(pid):
    for _ in range(100):
        if (
            not Path(f"/proc/{pid}").exists()
            or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
        ):
            return True
        time.sleep(0.05)
    return False


def test_the_command_finds_the_server_and_its_exit_code_is_passed_on(start, tmp_path):
    process = start("bash", "-c", 'echo "$OPENAI_BASE_URL"; exit 7')
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7 and "http://127.0.0.1:" in output
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_owner_however_that_ends(start, tmp_path, sign):
    process = start("sleep", "60")
    while "serving" not in process.stdout.readline():
        pass
    process.send_signal(sign)
    process.wait(30)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_proxy_is_not_asked_for_the_server_on_this_machine(start, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    process = start("bash", "-c", 'echo "no proxy: $no_proxy"')
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "127.0.0.1" in output.split("no proxy: ")[1]


def test_a_server_that_does_not_start_ends_with_its_own_last_words(start):
    process = start("true", server=f"{sys.executable} -c \"raise SystemExit('no such model')\"")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and "no such model" in error
