"""A Spin application in Python, made into a component by componentize-py (see test_wasm.py)."""

import os

from spin_sdk import http, key_value, variables
from spin_sdk.http import IncomingHandler as Handler
from spin_sdk.http import Request, Response


class IncomingHandler(Handler):
    def handle_request(self, request: Request) -> Response:
        path = request.uri
        if path.startswith("/boom"):
            raise ValueError("boom")
        if path.startswith("/env"):
            return Response(200, {"content-type": "text/plain"}, repr(sorted(os.environ.items())).encode())
        if path.startswith("/file"):
            return Response(200, {}, open("/data/file.txt", "rb").read())
        if path.startswith("/var"):
            return Response(200, {}, variables.get("greeting").encode())
        if path.startswith("/kv"):
            with key_value.open_default() as store:
                n = int((store.get("n") or b"0").decode()) + 1
                store.set("n", str(n).encode())
                return Response(200, {}, str(n).encode())
        if path.startswith("/out"):
            try:
                r = http.send(Request("GET", path[len("/out?") :], {}, None))
                return Response(200, {}, b"status %d %s" % (r.status, r.body[:50]))
            except Exception as e:
                return Response(502, {}, repr(e).encode())
        print("log line for", path)
        return Response(
            200,
            {"content-type": "text/plain", "x-path": request.headers.get("spin-path-info", "-")},
            b"Hello from " + path.encode() + b" " + (request.body or b""),
        )
