"""The probe: a program of its own that asks a server PING on a connection it is given, and tells how long each took.

    python -I -S probe.py FD INTERVAL_S

It is no part of the package's process: there a thread would share Python's lock with the copy, and measure that. It
writes the round trips as microseconds, four bytes each, to its standard output, and ends when that is closed or the
server is gone.
"""

import contextlib
import os
import socket
import struct
import sys
import time

_TELL_S = 0.02


def main(fd: int, interval_s: float) -> None:
    """Ask until there is nobody to tell."""
    with socket.socket(fileno=fd) as server:
        server.settimeout(10.0)
        told_s, found = time.perf_counter(), []
        while True:
            sent_s = time.perf_counter()
            server.sendall(b"*1\r\n$4\r\nPING\r\n")
            reply = b""
            while not reply.endswith(b"\r\n"):
                part = server.recv(4096)
                if not part:
                    return
                reply += part
            now_s = time.perf_counter()
            waited_s = now_s - sent_s
            while waited_s > 0:  # those who would have asked meanwhile have waited too
                found.append(min(2**32 - 1, int(waited_s * 1e6)))
                waited_s -= interval_s
            if now_s - told_s >= _TELL_S:
                os.write(1, struct.pack(f"<{len(found)}I", *found))
                told_s, found = now_s, []
            left_s = interval_s - (time.perf_counter() - sent_s)
            if left_s > 0:
                time.sleep(left_s)


if __name__ == "__main__":
    with contextlib.suppress(OSError, KeyboardInterrupt):
        main(int(sys.argv[1]), float(sys.argv[2]))
