"""A real S3 server on loopback: moto's, made as strict as S3 is.

moto checks `If-None-Match` on put_object in a step of its own and ignores it on complete_multipart_upload; S3 does
both at once. The application around it (a lock, and the second check) makes up for that, and can answer 500.
"""

import contextlib
import threading
import urllib.request
from collections.abc import Iterator

import pytest
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from storage import s3


class Server:
    """moto as one WSGI application; `fail(n)` says whether the n-th request is answered 500 after it was done.

    `fetched` are the paths of all GETs, a bucket's for its lists.
    """

    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock, self.requests, self.fail = threading.Lock(), 0, None
        self.fetched = []

    def __call__(self, environ, start_response):
        with self.lock:
            self.requests += 1
            if environ["REQUEST_METHOD"] == "GET":
                self.fetched.append(environ["PATH_INFO"])
            if self._completes_what_is_there(environ):
                start_response("412 Precondition Failed", [("Content-Type", "application/xml")])
                return [b"<Error><Code>PreconditionFailed</Code><Condition>If-None-Match</Condition></Error>"]
            head = []
            body = list(self.moto(environ, lambda status, headers, error=None: head.extend((status, headers))))
            if self.fail and self.fail(self.requests):
                head, body = ("500 Internal Server Error", []), [b"<Error><Code>InternalError</Code></Error>"]
            start_response(*head)
            return body

    def _completes_what_is_there(self, environ) -> bool:
        if environ["REQUEST_METHOD"] != "POST" or environ.get("HTTP_IF_NONE_MATCH") != "*":
            return False
        status = []
        head = {**environ, "REQUEST_METHOD": "HEAD", "QUERY_STRING": "", "CONTENT_LENGTH": "0"}
        list(self.moto(head, lambda line, headers, error=None: status.append(line)))
        return status[0].startswith("200")


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """A server with one empty bucket, `bucket`, which this process and those that it starts talk to meanwhile."""
    application = Server()
    running = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)  # a failed set-up must not hang the suite
    s3fs.S3FileSystem.clear_instance_cache()  # instances remember the endpoint of another test's server
    thread.start()
    url = f"http://127.0.0.1:{running.server_port}"
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # buckets outlive the server in its process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3.S3Store._filesystem().mkdir("bucket")
        yield application
    running.shutdown()
    thread.join()
