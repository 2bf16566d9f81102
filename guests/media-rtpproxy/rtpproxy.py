"""Runs RTPProxy: rtpproxy.py MEDIA-ADDRESS CONTROL-ADDRESS."""

import os
import signal
import sys

from rtp.io import rtpproxy

media, control = sys.argv[1:]
with open("/run/rtpproxy.pid", "w") as pid:
    print(os.getpid(), file=pid)
# No modules: the one that it would load writes a line a call into a file, for ever. Options: rtpproxy(8).
relay = rtpproxy(
    modules=(),
    extra_args=(
        *("-F", "-d", "WARN", "-l", media, "-m", "30000", "-M", "50000", "-t", "184"),
        *("-s", f"udp:{control}:7722", "-s", "tcp:127.0.0.1:7722"),
    ),
)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
while True:
    signal.pause()
