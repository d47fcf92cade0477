"""A configuration of gunicorn that patches in the master, as many are; run by test_web_apps.py."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
