"""A Flask app that enqueues, and tasks that need the app's context.

Run the web app and a worker for its queue, from the folder above::

    flask --app examples.flask_app run
    psqworker --path . examples.flask_app.q

    curl -d name=Ada http://127.0.0.1:5000/greetings
    curl http://127.0.0.1:5000/greetings/ID
"""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app, request

import psq

app = Flask(__name__)
app.config["GREETING"] = "Good day"

# extra_context is entered around each task, in the worker
q = psq.Queue(extra_context=app.app_context)


def greet(name: str) -> str:
    """A task that needs the app: its config, or a database behind it."""
    greeting: str = current_app.config["GREETING"]
    return f"{greeting}, {name}"


@app.post("/greetings")
def start() -> tuple[dict[str, Any], int]:
    """Enqueue, and say under which id to ask for the result."""
    task = q.enqueue(greet, request.form["name"])
    return {"id": task.id}, 202


@app.get("/greetings/<task_id>")
def look(task_id: str) -> dict[str, Any]:
    """The state of a task, and its result once there is one."""
    task = psq.TaskResult(task_id, q)
    status = task.status
    return {"status": status, "result": task.result(timeout=0) if status == "finished" else None}
