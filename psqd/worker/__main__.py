"""psqd's worker process: environment, monkeypatch, init_gevent, then the daemon; nothing before it."""

import os
import sys

# Children of tasks die of SIGABRT, or hang, with gRPC's own fork handlers: measured.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
if "grpc" in sys.modules:
    sys.exit("psqd: grpc was imported before gevent patched it (sitecustomize, a .pth file?): it would stop the hub")

from gevent import monkey

monkey.patch_all()

from grpc.experimental.gevent import init_gevent  # noqa: E402

init_gevent()

from psqd.worker.start import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
