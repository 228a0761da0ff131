"""What a runtime said about a failed start, in dockerd's words and with Docker's exit status.

Clients look into the text: ``docker run`` exits with 127 for ``executable file not found`` and ``no such file or
directory``, with 126 for ``permission denied`` and ``is a directory``, all in small letters as Go writes them; crun
writes them as C does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from engine.errors import StartFailed

_MISSING = re.compile(r"executable file [`'](?P<name>.*)[`'] not found in \$PATH(: .*)?")
_UNUSABLE = re.compile(r"open executable: (?P<reason>.*)")
_ERRNO = re.compile(
    r"\b(No such file or directory|Permission denied|Is a directory|Not a directory|Operation not permitted"
    r"|Invalid argument|File exists|Device or resource busy|No space left on device|Resource temporarily unavailable)\b"
)
_RUNC_PREFIX = re.compile(r"^runc (run|create) failed: ")
_MOUNT_HINT = (
    ": Are you trying to mount a directory onto a file (or vice-versa)?"
    " Check if the specified host path exists and is the expected type"
)


def last_error(log: str) -> str:
    """The message of the last error in a JSON log; the text itself when it is not one."""
    messages = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic") and entry.get("msg"):
            messages.append(str(entry["msg"]))
    return messages[-1] if messages else log.strip()


def start_error(log: str, status: int, *, arguments: Sequence[str], exec: bool) -> StartFailed:
    """The error for a failed start (or exec) of ``arguments``."""
    message = last_error(log) or f"the runtime ended with status {status} and said nothing"
    reason = _in_runc_words(message, arguments[0] if arguments else "")
    if exec:
        text = reason if reason.startswith("exec failed: ") else f"exec failed: {reason}"
        text = f"OCI runtime exec failed: {text}: unknown"
    else:
        text = _RUNC_PREFIX.sub("runc create failed: ", reason)
        text = f"failed to create task for container: failed to create shim task: OCI runtime create failed: {text}"
        text = f"{text}: unknown"
    lower = text.lower()
    if "executable file not found" in lower or "no such file or directory" in lower:
        return StartFailed(text, 127)
    if "permission denied" in lower or "is a directory" in lower:
        return StartFailed(text, 126)
    if "not a directory" in lower:
        return StartFailed(text + _MOUNT_HINT, 127)
    return StartFailed(text, 128)


def _in_runc_words(message: str, command: str) -> str:
    missing = _MISSING.fullmatch(message)
    if missing:
        name = missing["name"]
        why = f"stat {name}: no such file or directory" if "/" in name else "executable file not found in $PATH"
        return f'unable to start container process: exec: "{name}": {why}'
    unusable = _UNUSABLE.fullmatch(message)
    if unusable:
        # crun's word for "this is no regular file" is EPERM.
        why = "is a directory" if unusable["reason"] == "Operation not permitted" else unusable["reason"].lower()
        return f'unable to start container process: exec: "{command}": {why}'
    return _ERRNO.sub(lambda found: found[0].lower(), message)
