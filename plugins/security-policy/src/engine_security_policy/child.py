"""A policy written in Python, in a process of its own: it can hang, crash or eat memory without harm to the daemon."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from typing import IO, Any, cast

from engine.errors import Forbidden, InvalidParameter

__all__ = ["PythonPolicy"]

_START = 10.0  # seconds for the file's own imports

# What runs in the child, which has the file's path as argument: one line of JSON in, one out. What the policy prints
# must not become an answer, so it is sent to standard error.
_CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
answers, sys.stdout = sys.stdout, sys.stderr
def answer(value):
    answers.write(json.dumps(value) + "\\n")
    answers.flush()
rules = {"__name__": "policy", "__file__": sys.argv[1]}
try:
    with open(sys.argv[1]) as file:
        exec(compile(file.read(), sys.argv[1], "exec"), rules)
    names = [name for name in ("create", "exec", "pull", "volume") if callable(rules.get(name))]
    answer({"names": names} if names else {"error": "it defines none of create, exec, pull, volume"})
except BaseException as error:
    answer({"error": f"{type(error).__name__}: {error}"})
for line in sys.stdin:
    try:
        question = json.loads(line)
        reason = rules[question["what"]](question["request"])
        if reason is not None and not isinstance(reason, str):
            raise TypeError("a policy returns None or a text")
        answer({"reason": reason})
    except BaseException as error:
        answer({"error": f"{type(error).__name__}: {error}"})
"""


class PythonPolicy:
    """One file. `ask` may be called from any thread; one question is asked at a time."""

    def __init__(self, path: str, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._names: list[str] = []

    def check(self) -> None:
        """Start it once. Raises `InvalidParameter` when the file cannot be run."""
        with self._lock:
            self._start()

    def ask(self, what: str, request: dict[str, Any]) -> None:
        """Raises `Forbidden`: with the policy's reason, or because it failed or did not answer in time."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            if what not in self._names:
                return
            answer = self._exchange({"what": what, "request": request}, self._timeout)
        if "error" in answer:
            raise Forbidden(f"denied: policy {self._path} failed: {answer['error']}")
        if answer["reason"] is not None:
            raise Forbidden(f'denied by policy "{what}" ({self._path}): {answer["reason"]}')

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        answer = self._answer(_START)
        if "error" in answer:
            self.close()
            raise InvalidParameter(f"policy {self._path}: {answer['error']}")
        self._names = answer["names"]

    def _exchange(self, question: dict[str, Any], patience: float) -> dict[str, Any]:
        assert self._process is not None
        pipe = cast("IO[str]", self._process.stdin)
        try:
            pipe.write(json.dumps(question) + "\n")
            pipe.flush()
        except OSError as error:
            self.close()
            return {"error": f"it ended: {error}"}
        return self._answer(patience)

    def _answer(self, patience: float) -> dict[str, Any]:
        assert self._process is not None
        pipe = cast("IO[str]", self._process.stdout)
        ready, _, _ = select.select([pipe], [], [], patience)
        line = pipe.readline() if ready else ""
        if not line:
            self.close()
            return {"error": "it ended" if ready else f"it did not answer in {patience:g} s"}
        try:
            return cast("dict[str, Any]", json.loads(line))
        except ValueError:
            self.close()
            return {"error": "its answer is no JSON"}
