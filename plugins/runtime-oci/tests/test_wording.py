"""What a user reads when a start fails: dockerd's words, whichever runtime said it."""

from __future__ import annotations

import json

import pytest

from engine_runtime_oci.wording import last_error, start_error

CREATE = "failed to create task for container: failed to create shim task: OCI runtime create failed: "


def log(message: str) -> str:
    """The error log as runtimes write it, with a warning before the error."""
    entries = ({"level": "warning", "msg": "beware"}, {"level": "error", "msg": message})
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.mark.parametrize(
    ("message", "arguments", "text", "code"),
    [
        (
            'runc run failed: unable to start container process: exec: "nosuch": executable file not found in $PATH',
            ["nosuch"],
            'runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH',
            127,
        ),
        (
            'runc run failed: unable to start container process: exec: "/x": stat /x: no such file or directory',
            ["/x"],
            'runc create failed: unable to start container process: exec: "/x": stat /x: no such file or directory',
            127,
        ),
        (
            'runc run failed: unable to start container process: exec: "/etc": is a directory',
            ["/etc"],
            'runc create failed: unable to start container process: exec: "/etc": is a directory',
            126,
        ),
        (
            "executable file `nosuch` not found in $PATH: No such file or directory",
            ["nosuch"],
            'unable to start container process: exec: "nosuch": executable file not found in $PATH',
            127,
        ),
        (
            "executable file `/bin/nosuch` not found in $PATH: No such file or directory",
            ["/bin/nosuch"],
            'unable to start container process: exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory',
            127,
        ),
        (
            "open executable: Permission denied",
            ["/nox"],
            'unable to start container process: exec: "/nox": permission denied',
            126,
        ),
        (
            "open executable: Operation not permitted",
            ["/etc"],
            'unable to start container process: exec: "/etc": is a directory',
            126,
        ),
        ("writing file `memory.limit`: Invalid argument", ["a"], "writing file `memory.limit`: invalid argument", 128),
    ],
)
def test_a_failed_start_reads_as_dockerd_says_it(message: str, arguments: list[str], text: str, code: int) -> None:
    error = start_error(log(message), 1, arguments=arguments, exec=False)
    assert str(error) == f"{CREATE}{text}: unknown"
    assert error.exit_code == code


@pytest.mark.parametrize(
    "message",
    [
        'exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH',
        "executable file `nosuch` not found in $PATH: No such file or directory",
    ],
)
def test_a_failed_exec_reads_the_same_for_both_runtimes(message: str) -> None:
    error = start_error(log(message), 1, arguments=["nosuch"], exec=True)
    assert str(error) == (
        "OCI runtime exec failed: exec failed: unable to start container process: "
        'exec: "nosuch": executable file not found in $PATH: unknown'
    )
    assert error.exit_code == 127


def test_a_file_mounted_on_a_directory_comes_with_dockerds_hint() -> None:
    error = start_error(log("mount `/a` to `b`: Not a directory"), 1, arguments=["a"], exec=False)
    assert "Are you trying to mount a directory onto a file (or vice-versa)?" in str(error)
    assert error.exit_code == 127


def test_text_that_is_no_log_is_passed_on() -> None:
    assert last_error("plain words\n") == "plain words"
    assert "status 3" in str(start_error("", 3, arguments=[], exec=False))
