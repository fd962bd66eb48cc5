"""A worker that says what it hears, sleeps or dies."""

from __future__ import annotations

import os
import socket
import sys
import time

from shuntserve_plugins.frontdoors.openai.pool import bound_time


def main() -> None:
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as peer, peer.makefile("rb") as frames:
        while head := frames.read(4):
            frame = frames.read(int.from_bytes(head, "big"))
            if frame == b"die":
                return
            if frame.startswith(b"sleep"):
                time.sleep(60)
            if frame == b"work":
                bound_time(0.2)
                while True:
                    pass
            peer.sendall(head + frame)


if __name__ == "__main__":
    main()
