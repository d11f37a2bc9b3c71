"""The few calls of a W&B server that a run needs, on loopback: it keeps rows as the real one does and hands them back
to a client that resumes. What it was sent is in `runs`."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeWandb:
    """`with FakeWandb() as server:` serves at server.url; server.runs[id] is {rows, summary, config, name, tags}."""

    def __enter__(self) -> "FakeWandb":
        self.runs: dict[str, dict] = {}
        self.calls: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.calls.append(self.path)
                found = outer.graphql(body) if self.path == "/graphql" else outer.stream(self.path, body)
                self.answer(found)

            def do_PUT(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer({})

            def answer(self, found: dict):
                data = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.handle_error = True, lambda *_: None
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def graphql(self, body: bytes) -> dict:
        asked = json.loads(body)
        name, given = asked["operationName"], asked["variables"]
        if name == "RunResumeStatus":
            return {"data": {"model": {**self._project(given), "bucket": self._resumed(given["name"])}}}
        if name == "UpsertBucket":
            run = self.runs.setdefault(given["name"], {"rows": [], "summary": {}})
            run |= {key: given[key] for key in ("config", "displayName", "tags") if given[key]}
            bucket = {"id": "b", "name": given["name"], "displayName": run.get("displayName"), "config": run["config"],
                      "project": self._project(given), "historyLineCount": len(run["rows"])}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in given["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    def stream(self, path: str, body: bytes) -> dict:
        run, files = self.runs[path.split("/")[4]], json.loads(body).get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            rows = [json.loads(line) for line in history["content"]]
            run["rows"][history["offset"]:] = rows
        if summary := files.get("wandb-summary.json"):
            run["summary"] = json.loads(summary["content"][-1])
        return {}

    def _project(self, given: dict) -> dict:
        return {"id": "p", "name": given["project"], "entity": {"id": "e", "name": given["entity"] or "me"}}

    def _resumed(self, name: str) -> dict | None:
        run = self.runs.get(name)
        return run and {
            "id": "b", "name": name, "displayName": run.get("displayName"), "notes": None, "wandbConfig": "{\"t\": 1}",
            "summaryMetrics": json.dumps(run["summary"]), "logLineCount": 0, "historyLineCount": len(run["rows"]),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run["rows"][-1:]]), "eventsTail": "[]",
            "config": run["config"], "tags": run.get("tags") or []}
