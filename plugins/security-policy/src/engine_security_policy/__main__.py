"""``python -m engine_security_policy test FILE...``: checks policy files and runs their tests."""

from __future__ import annotations

import sys

from engine.errors import EngineError
from engine_security_policy.policies import try_out


def main(words: list[str]) -> int:
    """0 when every file is good and every test passes."""
    if len(words) < 2 or words[0] != "test":
        sys.stderr.write("usage: python -m engine_security_policy test FILE...\n")
        return 2
    failed = 0
    for path in words[1:]:
        try:
            outcomes = try_out(path)
        except EngineError as error:
            sys.stdout.write(f"{path}: {error}\n")
            failed += 1
            continue
        for name, problem in outcomes:
            sys.stdout.write(f"{'FAIL' if problem else 'ok  '} {path}: {name}{': ' + problem if problem else ''}\n")
            failed += bool(problem)
        if not outcomes:
            sys.stdout.write(f"ok   {path}: no tests\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
