"""A patched process with a real server over a stand-in daemon; told what to do by lines of Python on stdin."""

# ruff: noqa: E402
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json
import os
import sys
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from gevent.fileobject import FileObjectThread

from psqd.worker.logs import setup
from psqd.worker.web import serve, server
from tests.unit import daemon_standins as standins


def main() -> None:
    options = json.loads(sys.argv[1])
    logs = setup(SimpleNamespace(format="text", level="info", file=None))
    server.IDLE, server.REQUEST = options.get("idle", server.IDLE), options.get("request", server.REQUEST)
    daemon = standins.daemon(*options.get("queues", ()), busy=True)
    http = SimpleNamespace(host=options.get("host", "127.0.0.1"), port=0, token=options.get("token"))
    web = serve(daemon, http)
    web.start()
    print(web.address[1], flush=True)
    names = {"daemon": daemon, "web": web, "logs": logs, "serve": serve, "standins": standins, "print": print}
    for line in FileObjectThread(sys.stdin):
        exec(line, names)
        print("done", flush=True)
    web.stop(1)
    web.stop(1)
    logs.close(5)


main()
