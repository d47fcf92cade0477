"""Run by test_forks.py: calls a server from threads, forks children meanwhile, and the children call, too.

Arguments: plain, later (children patch, as gunicorn's gevent worker does) or gevent; the server's address.
"""

from __future__ import annotations

import sys

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()

import faulthandler
import itertools
import os
import threading
import traceback
import warnings

from psq.google.channel import Channel, Method, Target

warnings.simplefilter("ignore")  # that a process with threads forks, and that a child patches late, is the point here

ECHO = Method("/test.Service/Echo")
MODE, ADDRESS = sys.argv[1:3]
CHILDREN, THREADS, CALLS = 4, 3, 5

channel = Channel(Target(ADDRESS, secure=False))


def calls(name: str, stop: threading.Event | None = None) -> None:
    for number in itertools.count() if stop is not None else range(CALLS):
        if stop is not None and stop.is_set():
            return
        text = f"{name}-{number}".encode()
        assert channel.call(ECHO, text, 20.0) == text
        if stop is not None:
            done[name] = number + 1


def side_by_side(name: str) -> None:
    threads = [threading.Thread(target=calls, args=(f"{name}-{number}",)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


done: dict[str, int] = {}
stop = threading.Event()
callers = [threading.Thread(target=calls, args=(f"parent-{number}", stop)) for number in range(THREADS)]
for caller in callers:
    caller.start()
calls("first")
children = []
for child in range(CHILDREN):
    calls(f"between-{child}")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if MODE == "later":
                from gevent import monkey

                monkey.patch_all()
            faulthandler.dump_traceback_later(25, exit=True)
            calls(f"child-{child}")
            side_by_side(f"child-{child}")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children], flush=True)
stop.set()
for caller in callers:
    caller.join()
print(sum(done.values()), flush=True)
os._exit(0)
