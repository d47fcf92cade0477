"""A Flask app and its queue, as web apps have them."""

from __future__ import annotations

import os

from flask import Flask

import psq

app = Flask("shop")


def make_queue() -> psq.Queue:
    return psq.Queue(
        psq.connect(os.environ["TEST_BROKER"]),
        "web",
        storage=os.environ["TEST_STORAGE"],
        extra_context=app.app_context,
    )


if "TEST_BROKER" in os.environ:
    q = make_queue()
