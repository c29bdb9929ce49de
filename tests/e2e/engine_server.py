"""An OpenAI server in a thread, without a trace of its scheduler."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class EngineServer:
    """Answers every request with one token, and notes the trace context of each."""

    def __init__(self) -> None:
        self.contexts: list[str] = []
        self.fault = 0
        """Status of its answers; 0: it answers."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                models = json.dumps({"data": [{"id": "m", "object": "model"}]})
                page = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.1\n"
                self._say(models if self.path == "/v1/models" else page)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.contexts.append(self.headers.get("traceparent", ""))
                if server.fault:
                    self._say("no", status=server.fault)
                    return
                choice = {"index": 0, "text": "a", "token_ids": [97], "finish_reason": "stop"}
                self._say(f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n", "text/event-stream")

            def _say(self, text: str, kind: str = "text/plain", status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
