"""nftables through libnftables in this process: one context, one command at a time.

A command is nft's own text; everything in one command is one kernel transaction. In-process a change costs 0.1 ms
where nft(8) costs 3 to 20. libnftables is not thread-safe, so a lock makes every call wait its turn.
"""

from __future__ import annotations

import ctypes
import threading

from engine.errors import EngineError, NotSupported

__all__ = ["Nftables", "NftablesError"]

_LIBRARY = "libnftables.so.1"


class NftablesError(EngineError):
    """The kernel or libnftables refused a command; the text is nft's, without the command."""


class Nftables:
    """A libnftables context in the network namespace of the process."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NotSupported(f"bridge networks need {_LIBRARY} (Debian package libnftables1)") from error
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
        library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = (ctypes.c_void_p,)
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = (ctypes.c_void_p,)
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        self._library = library
        self._lock = threading.Lock()
        self._context = self._new_context()

    def _new_context(self) -> int:
        context: int | None = self._library.nft_ctx_new(0)
        if context is None:
            raise NotSupported("bridge networks need nf_tables in the kernel")
        self._library.nft_ctx_buffer_output(context)
        self._library.nft_ctx_buffer_error(context)
        return context

    def run(self, command: str) -> str:
        """Carry out ``command`` (all or nothing) and return what it prints; raises `NftablesError`."""
        with self._lock:
            status = self._library.nft_run_cmd_from_buffer(self._context, command.encode())
            output = self._library.nft_ctx_get_output_buffer(self._context) or b""
            problem = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            lines = [line for line in problem.decode(errors="replace").splitlines() if "Error:" in line]
            raise NftablesError("nftables: " + ("; ".join(lines) or f"status {status}"))
        return str(output.decode(errors="replace"))

    def close(self) -> None:
        """Free the context."""
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = 0
