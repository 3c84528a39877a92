"""A server on this machine that serves one file, and can be told to misbehave."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Its attributes are its faults."""

    daemon_threads = True
    status, cut, hang, stall, headers = 200, 0, False, None, ()

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.content, self.asked, self.release = content, [], threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if server.hang:
            server.release.wait(20)
            return
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.content)))
        for header in server.headers:
            self.send_header(*header)
        self.end_headers()
        if server.stall is not None:
            self.wfile.write(server.content[: server.stall])
            server.release.wait(20)
            return
        self.wfile.write(server.content[: len(server.content) - server.cut])

    def log_message(self, *_):
        pass


@contextmanager
def serving(content):
    with Server(content) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.release.set()
            made.shutdown()
            thread.join()


def nowhere():
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def files(folder):
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
