"""Pull, push and load progress: redrawn lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time

from engine.cli.failures import ApiFailure, Failure
from engine.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TextIO

    from engine.cli.session import Session

BAR = 50
WIDE = 110


def bar(detail: dict[str, Any], width: int, now: float | None = None) -> str:
    """Docker's progress bar of a ``progressDetail``; empty when nothing is known."""
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if current <= 0 and total <= 0:
        return ""
    if detail.get("hidecounts") is None and detail.get("units"):
        amounts = f"{current}/{total} {detail['units']}" if total > 0 else f"{current} {detail['units']}"
    elif total <= 0 or current > total:
        amounts = f"{human_size(current):>8}"
    else:
        amounts = f"{human_size(current):>8}/{human_size(total)}"
    drawn = ""
    left = ""
    if total > 0:
        done = min(current * 100 // total // 2, BAR)
        if width > WIDE:
            drawn = f"[{'=' * done}>{' ' * (BAR - done)}] "
        if width > BAR and current > 0 and detail.get("start") and done < BAR:
            spent = (time.time() if now is None else now) - detail["start"]
            left = f"  {int(spent / current * (total - current))}s"
    return drawn + amounts + left


def display(messages: Iterable[dict[str, Any]], output: TextIO, aux: Callable[[Any], None] | None = None) -> None:
    """Show a stream of progress messages. Raises `Failure` for an error in it."""
    try:
        width = os.get_terminal_size(output.fileno()).columns
    except (OSError, ValueError):
        width = 0
    lines: dict[str, int] = {}
    for message in messages:
        error = message.get("errorDetail") or ({"message": message["error"]} if message.get("error") else None)
        if error:
            output.flush()
            if error.get("code") == 401:
                raise Failure("authentication is required")
            raise Failure(str(error.get("message", "")))
        if message.get("aux") is not None:
            if aux is not None:
                aux(message["aux"])
            continue
        _show(message, output, width, lines)
    output.flush()


def _show(message: dict[str, Any], output: TextIO, width: int, lines: dict[str, int]) -> None:
    identifier = message.get("id") or ""
    detail = message.get("progressDetail") or {}
    drawn = bar(detail, width) or message.get("progress") or ""
    moved = 0
    if not width and drawn:
        return
    if width and identifier and (drawn or message.get("progressDetail") is not None):
        if identifier not in lines:
            lines[identifier] = len(lines)
            output.write("\n")
        moved = len(lines) - lines[identifier]
        output.write(f"\033[{moved}A\033[2K\r")
    else:
        lines.clear()
        if width and drawn:
            output.write("\033[2K\r")
    text = f"{identifier}: " if identifier else ""
    if message.get("from"):
        text += f"(from {message['from']}) "
    if drawn:
        text += f"{message.get('status', '')} {drawn}"
        output.write(text + "\r")
    elif message.get("stream") is not None:
        output.write(text + message["stream"])
    else:
        output.write(f"{text}{message.get('status', '')}" + ("\r" if moved else "\n"))
    if moved:
        output.write(f"\033[{moved}B")
    if width or not drawn:
        output.flush()


def pull_image(session: Session, image: str, platform: str, *, quiet: bool, output: TextIO | None = None,
               all_tags: bool = False) -> None:  # fmt: skip
    """Pull an image and show how it goes (on standard error unless told otherwise)."""
    from engine.cli.credentials import registry_header
    from engine.names import parse_reference

    reference = parse_reference(image)
    if not all_tags:
        reference = reference.with_default_tag()
    query = {"fromImage": reference.familiar_name, "tag": reference.digest or reference.tag or "", "platform": platform}
    response = session.client.request(
        "POST", "/images/create", query, headers={"X-Registry-Auth": registry_header(session, reference.domain)}
    )
    if quiet:
        with open(os.devnull, "w") as nothing:
            display(response.messages(), nothing)
    else:
        display(response.messages(), output or sys.stderr)


__all__ = ["ApiFailure", "bar", "display", "pull_image"]
