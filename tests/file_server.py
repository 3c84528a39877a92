"""A local server of one file, with faults that tests can set."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """A server whose class attributes are its faults."""

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
    """Serve content in a thread, and yield the server."""
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


def nowhere():
    """Return an address without a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def files(folder):
    """Return the names of the files of a folder."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
