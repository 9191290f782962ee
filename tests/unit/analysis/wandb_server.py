"""As much of a server of wandb as uploads and resumes of a run ask for, in memory."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class UploadedRun:
    """What has arrived of a run."""

    fields: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    exit_code: int | None = None


@contextmanager
def wandb_server() -> Iterator[tuple[str, dict[str, UploadedRun]]]:
    """Serve on this machine, and yield the address and the runs by their id."""
    runs: dict[str, UploadedRun] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                answer = {"data": _answer(asked["query"], asked.get("variables") or {}, runs)}
            elif stream := re.fullmatch("/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                _take(json.loads(body), runs[stream[1]])
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", runs
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(query: str, asked: dict[str, Any], runs: dict[str, UploadedRun]) -> dict[str, Any]:
    if "mutation UpsertBucket" in query:
        run = runs.setdefault(asked["name"], UploadedRun())
        run.fields |= {name: value for name, value in asked.items() if value is not None}
        return {"upsertBucket": {"bucket": _bucket(asked["name"], run), "inserted": True}}
    if "query RunResumeStatus" in query:
        known = runs.get(asked["name"])
        project = {"id": "project", "name": asked["project"], "entity": {"id": "entity", "name": "someone"}}
        return {"model": {**project, "bucket": known and _bucket(asked["name"], known)}}
    if "mutation CreateRunFiles" in query:
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []}}
    user = {"id": "user", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
    return {"viewer": user, "serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "99.0.0"}}}


def _bucket(run_id: str, run: UploadedRun) -> dict[str, Any]:
    last = [json.dumps(run.rows[max(run.rows)])] if run.rows else []
    project = {"id": "project", "name": run.fields["project"], "entity": {"id": "entity", "name": "someone"}}
    texts = {"config": run.fields.get("config", "{}"), "summaryMetrics": "{}", "wandbConfig": "{}", "eventsTail": "[]"}
    counts = {"historyLineCount": len(run.rows), "eventsLineCount": 0, "logLineCount": 0}
    names = {"id": run_id, "name": run_id, "displayName": run.fields.get("displayName")}
    return {**names, **texts, **counts, "historyTail": json.dumps(last), "tags": [], "project": project}


def _take(sent: dict[str, Any], run: UploadedRun) -> None:
    history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
    for number, line in enumerate(history["content"], history["offset"]):
        run.rows[number] = json.loads(line)
    if sent.get("complete"):
        run.exit_code = sent["exitcode"]
