"""The HTTP server's promises beyond framing: disconnects, deadlines, limits, keys, streams, drain.

Times are bounds on when something must have happened at the latest, generous enough for a loaded machine; no test
asserts that something is fast. Rows are those of ../shared/research/reliability.md, section 1.
"""

import pathlib
import re
import resource
import signal
import socket
import struct
import threading
import time
import unittest

import http_harness
from http_harness import Broken, Server, assert_error_shape, parse_replies, read_all, read_until

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
DETECTED_WITHIN = 1.0  # row 12: an abort reaches the program within a second


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


class Disconnect(unittest.TestCase):
    """Row 12: FIN, RST and half-close, in every phase, end the request; nothing is left open."""

    WAYS = {"fin": lambda s: s.close(), "rst": reset, "half-close": lambda s: s.shutdown(socket.SHUT_WR)}

    def leave(self, server, raw, until, way):
        before = server.stats()
        s = server.connect()
        s.sendall(raw)
        if until is not None:
            self.assertIn(until, read_until(s, until))
        else:
            self.assertIsNotNone(server.wait_stats(lambda x: x["open"] > before["open"]))
        self.WAYS[way](s)
        took = server.wait_stats(lambda x: x["gone"] == before["gone"] + 1 and x["open"] == before["open"])
        s.close()
        self.assertIsNotNone(took, "never noticed")
        self.assertLess(took, DETECTED_WITHIN)

    def test_while_waiting_for_the_answer(self):
        with Server() as server:
            for way in self.WAYS:
                with self.subTest(way):
                    self.leave(server, GET % b"/late?n=1000000&gap=1", None, way)

    def test_while_waiting_with_a_body(self):
        raw = b"POST /late?n=1000000&gap=1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        with Server() as server:
            for way in self.WAYS:
                with self.subTest(way):
                    self.leave(server, raw, None, way)

    def test_in_a_stream_between_events(self):
        raw = b"GET /stream?n=1 HTTP/1.1\r\nHost: x\r\nX-How: hang\r\n\r\n"
        with Server() as server:
            for way in self.WAYS:
                with self.subTest(way):
                    self.leave(server, raw, b"data: 1", way)

    def test_in_a_running_stream(self):
        with Server() as server:
            for way in self.WAYS:
                with self.subTest(way):
                    self.leave(server, GET % b"/stream?n=1000000&gap=2", b"data: 1", way)

    def test_with_pipelined_requests_behind(self):
        with Server() as server:
            for way in self.WAYS:
                with self.subTest(way):
                    self.leave(server, GET % b"/late?n=1000000&gap=1" + GET % b"/a" * 5, None, way)

    def test_before_and_inside_the_head_and_the_body(self):
        heads = [b"", b"GE", b"GET /a HTTP/1.1\r\nHos", b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"]
        with Server() as server:
            before = server.stats()
            for way in self.WAYS.values():
                for raw in heads:
                    s = server.connect()
                    s.sendall(raw)
                    time.sleep(0.02)
                    way(s)
                    s.close()
            took = server.wait_stats(lambda x: x["connections"] <= before["connections"] and x["body_bytes"] == 0)
            self.assertIsNotNone(took)
            self.assertLess(took, DETECTED_WITHIN)

    def test_fin_right_behind_the_request(self):
        """A synchronous answer is still given to a client that has closed its sending side; a late one is not awaited."""
        with Server() as server:
            s = server.connect()
            s.sendall(GET % b"/a")
            s.shutdown(socket.SHUT_WR)
            data, _ = read_all(s)
            self.assertEqual(parse_replies(data)[0].status, 200)
            before = server.stats()
            s = server.connect()
            s.sendall(GET % b"/late?n=1000000")
            s.shutdown(socket.SHUT_WR)
            took = server.wait_stats(lambda x: x["gone"] == before["gone"] + 1 and x["open"] == 0)
            self.assertIsNotNone(took)
            s.close()

    def test_hundreds_of_aborts_leave_nothing(self):
        with Server("--threads", "2") as server:
            for i in range(300):
                s = server.connect()
                s.sendall(GET % (b"/stream?n=1000" if i % 2 else b"/late?n=1000"))
                if i % 2 and i % 3 == 0:
                    s.recv(10)
                (reset if i % 5 else socket.socket.close)(s)
            self.assertIsNotNone(server.wait_stats(lambda x: x["open"] == 0 and x["requests"] == 1 and x["connections"] == 1))


class Deadlines(unittest.TestCase):
    """Row 8: whole-header, whole-body and write deadlines, however steadily single bytes come."""

    def trickle(self, server, head, limit=20):
        s = server.connect(timeout=0.02)
        s.sendall(head)
        data, begin, ended = b"", time.monotonic(), False
        while time.monotonic() - begin < limit and not ended:
            try:
                s.sendall(b"a")
                piece = s.recv(1000)
                ended = piece == b""
                data += piece
            except socket.timeout:
                pass
            except OSError:
                ended = True
        s.close()
        self.assertTrue(ended, "still open")
        return data

    def test_slow_header(self):
        with Server("--header-timeout", "300ms") as server:
            data = self.trickle(server, b"GET /a HTTP/1.1\r\nHost: x\r\nX: ")
            replies = parse_replies(data)
            self.assertEqual([r.status for r in replies], [408])
            assert_error_shape(replies[0])

    def test_slow_request_line_after_a_first_request(self):
        with Server("--header-timeout", "300ms") as server:
            data = self.trickle(server, GET % b"/a" + b"GET /")
            self.assertEqual([r.status for r in parse_replies(data)][0], 200)

    def test_slow_body(self):
        for head in (b"Content-Length: 100000", b"Transfer-Encoding: chunked"):
            with self.subTest(head), Server("--body-timeout", "300ms") as server:
                data = self.trickle(server, b"POST /a HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + b"fffff\r\n" * (b"chunked" in head))
                replies = parse_replies(data)
                self.assertEqual([r.status for r in replies], [408])
                assert_error_shape(replies[0])
                self.assertEqual(server.stats()["body_bytes"], 0)

    def test_silent_connections_are_closed(self):
        with Server("--header-timeout", "200ms", "--idle-timeout", "300ms") as server:
            fresh = server.connect()
            self.assertEqual(read_all(fresh), (b"", "closed"))
            used = server.connect()
            used.sendall(GET % b"/a")
            data, end = read_all(used)
            self.assertEqual((len(parse_replies(data)), end), (1, "closed"))

    def test_reader_that_takes_nothing_is_cut(self):
        for path in (b"/big?bytes=8000000", b"/stream?n=1000000&gap=1&bytes=3000"):
            with self.subTest(path), Server("--stall", "400ms", "--stream-buffer", "64M") as server:
                s = server.connect(receive_buffer=4096)
                s.sendall(GET % path)
                took = server.wait_stats(lambda x: x["cut"] == 1 and x["open"] == 0 and x["requests"] == 1, 20)
                self.assertIsNotNone(took, "still holds the reply")
                s.close()

    def test_slow_but_steady_reader_is_served(self):
        with Server("--stall", "1s") as server:
            s = server.connect(receive_buffer=16384)
            s.sendall(b"GET /big?bytes=2000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = b""
            while True:
                piece = s.recv(16384)
                if not piece:
                    break
                data += piece
                time.sleep(0.02)
            self.assertEqual(len(parse_replies(data)[0].body), 2000000)
            s.close()

    def test_reader_of_a_byte_now_and_then_is_cut(self):
        """Progress in every window, but far below the least rate: neither kind of reply is held for ever. The window is
        updated by the kernel in steps, so the client takes 4 KB at once, of the 100 KB it should."""
        for path in (b"/big?bytes=16000000", b"/stream?n=1000000&gap=1&bytes=3000"):
            with self.subTest(path), Server("--stall", "1s", "--drain", "100000", "--stream-buffer", "64M") as server:
                s = server.connect(receive_buffer=4096)
                s.sendall(GET % path)
                cut = False
                for _ in range(200):
                    try:
                        s.recv(2048)
                    except OSError:
                        pass
                    time.sleep(0.1)
                    cut = server.stats()["cut"] == 1
                    if cut:
                        break
                self.assertTrue(cut, "still holds the reply")
                self.assertIsNotNone(server.wait_stats(lambda x: x["reply_bytes"] < 10000 and x["requests"] == 1))
                s.close()

    def test_reader_too_slow_for_a_stream_is_cut_at_the_buffer_limit(self):
        with Server("--stream-buffer", "64K") as server:
            s = server.connect(receive_buffer=4096)
            s.sendall(GET % b"/stream?n=1000000&gap=1&bytes=30000")
            took = server.wait_stats(lambda x: x["gone"] == 1 and x["open"] == 0, 20)
            self.assertIsNotNone(took, "buffers without bound")
            s.close()


class Limits(unittest.TestCase):
    def test_unread_whole_replies_are_bounded_together(self):
        """Past the budget a reply is a 503; small ones still go, and the budget comes back when the readers leave."""
        with Server("--reply-total", "40M") as server:
            readers = []
            for _ in range(4):  # 16 MB as text, in a buffer that doubles: two fit
                s = server.connect(receive_buffer=4096)
                s.sendall(GET % b"/big?bytes=16000000")
                readers.append(s)
            first_lines = [s.recv(100).split(b"\r\n")[0] for s in readers]
            self.assertEqual(sorted(int(line.split()[1]) for line in first_lines), [200, 200, 503, 503])
            self.assertLessEqual(server.stats()["reply_bytes"], 40 << 20)
            refused = server.get("/big?bytes=16000000")
            self.assertEqual(refused.status, 503)
            self.assertEqual(refused.header("Retry-After"), "1")
            assert_error_shape(refused)
            self.assertEqual(server.get("/a").status, 200)
            for s in readers:
                s.close()
            self.assertIsNotNone(server.wait_stats(lambda x: x["reply_bytes"] < 10000), "the budget is not given back")
            self.assertEqual(len(server.get("/big?bytes=16000000").body), 16000000)

    def test_unread_streams_are_bounded_together(self):
        """The streams that hold much are cut; one that is read goes on to its end."""
        with Server("--reply-total", "2M", "--stream-buffer", "1G") as server:
            readers = []
            for _ in range(4):
                s = server.connect(receive_buffer=4096)
                s.sendall(GET % b"/stream?n=1000000&gap=1&bytes=30000")
                readers.append(s)
            self.assertIsNotNone(server.wait_stats(lambda x: x["cut"] >= 1, 30), "holds without bound")
            good = server.get("/stream?n=300&gap=1&bytes=100")
            self.assertTrue(good.body.endswith(b"data: [DONE]\n\n"))
            self.assertIsNotNone(server.wait_stats(lambda x: x["cut"] == 4, 60), "holds without bound")
            self.assertIsNotNone(server.wait_stats(lambda x: x["reply_bytes"] < 10000))
            for s in readers:
                s.close()

    def test_300_mb_body_is_refused_at_the_limit(self):
        """Row 7: by its Content-Length before a byte, and chunked at limit + 1; memory is not taken."""
        with Server("--body", "1M") as server:
            s = server.connect()
            s.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 314572800\r\n\r\n")
            replies = parse_replies(read_all(s)[0])
            s.close()
            self.assertEqual([r.status for r in replies], [413])
            assert_error_shape(replies[0])
            s = server.connect()
            s.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            sent, piece = 0, b"10000\r\n" + b"x" * 65536 + b"\r\n"
            try:
                while sent < 300 << 20:
                    s.sendall(piece)
                    sent += 65536
            except OSError:
                pass
            self.assertLess(sent, 64 << 20, "it went on reading")
            s.close()
            peak_kb = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{server.process.pid}/status").read_text())[1])
            self.assertLess(peak_kb, 200_000)  # sanitizers included; 300 MB would show
            self.assertEqual(server.stats()["body_bytes"], 0)

    def test_413_reaches_a_client_that_sends_on(self):
        with Server("--body", "1M") as server:
            s = server.connect()
            s.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
            time.sleep(0.1)
            s.sendall(b"x" * 3000000)
            self.assertEqual([r.status for r in parse_replies(read_all(s)[0])], [413])
            s.close()

    def test_expect_continue_is_refused_before_the_body(self):
        with Server("--body", "1M") as server:
            s = server.connect()
            s.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3000000\r\n\r\n")
            self.assertEqual([r.status for r in parse_replies(read_all(s)[0])], [413])
            s.close()

    def test_body_of_exactly_the_limit(self):
        with Server("--body", "100000") as server:
            for framing in ("cl", "chunked"):
                for n, status in ((100000, 200), (100001, 413)):
                    with self.subTest(framing=framing, n=n):
                        body = b"x" * n
                        if framing == "cl":
                            raw = b"Content-Length: %d\r\n\r\n" % n + body
                        else:
                            raw = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % n + body + b"\r\n0\r\n\r\n"
                        data, _ = server.exchange(b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + raw)
                        self.assertEqual([r.status for r in parse_replies(data)], [status])

    def test_bodies_of_all_requests_together(self):
        """Row 16: the sum of what is held is bounded; the request that would pass it gets 503, the others go on."""
        with Server("--body", "1M", "--body-total", "2M") as server:
            held = []
            for _ in range(2):
                s = server.connect()
                s.sendall(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 999999)
                held.append(s)
            self.assertIsNotNone(server.wait_stats(lambda x: x["body_bytes"] >= 1999998))
            data, _ = server.exchange(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000000)
            replies = parse_replies(data)
            self.assertEqual([r.status for r in replies], [503])
            self.assertEqual(replies[0].header("Retry-After"), "1")
            for s in held:
                s.sendall(b"x")
                self.assertIn(b" 200 OK", read_until(s, b"\r\n\r\n"))
                s.close()
            self.assertIsNotNone(server.wait_stats(lambda x: x["body_bytes"] == 0))

    def test_connections_above_the_limit(self):
        """Row 9: they are told 503, not left in silence; health still answers; room comes back."""
        with Server("--connections", "20", "--threads", "2") as server:
            idle = []
            for _ in range(20):
                s = server.connect()
                s.sendall(GET % b"/a")
                read_until(s, b"\r\n\r\n")
                idle.append(s)
            refused = server.get("/a")
            self.assertEqual(refused.status, 503)
            assert_error_shape(refused)
            self.assertEqual(refused.json()["error"]["code"], "server_is_overloaded")
            self.assertEqual(server.get("/health").status, 200)
            for s in idle:
                s.close()
            self.assertIsNotNone(server.wait_stats(lambda x: x["connections"] == 1))
            self.assertEqual(server.get("/a").status, 200)

    def test_health_answers_behind_a_thousand_idle_connections(self):
        with Server("--connections", "200") as server:
            idle = [server.connect() for _ in range(1000)]
            for _ in range(20):
                self.assertEqual(server.get("/health").status, 200)
            for s in idle:
                s.close()
            self.assertIsNotNone(server.wait_stats(lambda x: x["connections"] == 1))

    def test_out_of_descriptors(self):
        """Row 71: no spin, no silence, and it recovers."""
        with Server("--connections", "50") as server:
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (40, 4096))
            many = [server.connect() for _ in range(60)]
            time.sleep(0.2)
            for s in many:
                s.close()
            self.assertIsNotNone(server.wait_stats(lambda x: x["connections"] == 1))
            self.assertEqual(server.get("/a").status, 200)


class Requests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "key-one", "--api-key", "key-two-longer")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    KEY = "Authorization: Bearer key-one"

    def test_keys(self):
        """Row 11: every route but the open ones; the index of the key; no difference between unknown path and known."""
        for path in ("/a", "/models/x", "/late", "/stream", "/nope", "/error", "//a", "/a/", "/%61", "/a;x", "/./a", "/health/../a"):
            for header in ([], ["Authorization: Bearer key-on"], ["Authorization: Bearer key-onee"], ["Authorization: key-one"],
                           ["Authorization: Bearer "], ["Authorization: Basic a2V5LW9uZQ=="], ["Authorization: Bearer KEY-ONE"]):
                with self.subTest(path=path, header=header):
                    reply = self.server.get(path, *header)
                    self.assertEqual(reply.status, 401)
                    self.assertEqual(reply.header("WWW-Authenticate"), "Bearer")
                    assert_error_shape(reply)
                    self.assertEqual(reply.json()["error"]["code"], "invalid_api_key")
        self.assertEqual(self.server.get("/health").status, 200)
        self.assertEqual(self.server.get("/a", self.KEY).json()["key"], 0)
        self.assertEqual(self.server.get("/a", "authorization: bearer  key-two-longer ").json()["key"], 1)

    def test_only_the_raw_path_that_is_a_route_reaches_it(self):
        """Row 10: no other spelling of a path is the same path, with a key or without."""
        for path in ("//a", "/a/", "/%61", "/a;x", "/./a", "/a%2f", "/A", "/health/../a", "//health", "/%68ealth", "/health/"):
            with self.subTest(path):
                self.assertEqual(self.server.get(path).status, 401)
                reply = self.server.get(path, self.KEY)
                self.assertEqual(reply.status, 404)
                assert_error_shape(reply)

    def test_wrong_method(self):
        reply = self.server.get("/echo", self.KEY)
        self.assertEqual((reply.status, reply.header("Allow")), (405, "POST"))
        assert_error_shape(reply)
        self.assertEqual(self.server.get("/a", self.KEY, method="BREW").header("Allow"), "GET, POST")

    def test_content_type(self):
        """Row 14: what a browser may send to another origin without asking first is not taken."""
        for header in ([], ["Content-Type: text/plain"], ["Content-Type: application/x-www-form-urlencoded"],
                       ["Content-Type: multipart/form-data; boundary=x"], ["Content-Type: application/jsonx"]):
            reply = self.server.get("/echo", self.KEY, *header, method="POST", body=b"{}")
            self.assertEqual(reply.status, 415)
            assert_error_shape(reply)
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON;x"):
            reply = self.server.get("/echo", self.KEY, "Content-Type: " + kind, method="POST", body=b"{}")
            self.assertEqual(reply.status, 200)

    def test_parameters(self):
        for path, params in (
            ("/models/org/model", ["org/model"]),
            ("/models/a%2Fb%20c", ["a/b c"]),
            ("/stores/vs_1/files/f%C3%A9", ["vs_1", "fé"]),
        ):
            self.assertEqual(self.server.get(path, self.KEY).json()["params"], params)
        for path in ("/models/", "/stores//files/x", "/stores/a/b/files/c", "/models/%ff", "/models/%0a", "/stores/a/files/"):
            self.assertEqual(self.server.get(path, self.KEY).status, 404, path)

    def test_query(self):
        self.assertEqual(self.server.get("/a?x=1&y=%20?z", self.KEY).json()["query"], "x=1&y=%20?z")
        self.assertIsNone(self.server.get("/a", self.KEY).json()["query"])
        self.assertEqual(self.server.get("/a?", self.KEY).json()["query"], "")

    def test_request_ids(self):
        """Row 13: ids are ours; the client's is only echoed, if it is short and visible ASCII."""
        ids = {self.server.get("/a", self.KEY, "X-Request-Id: same").header("X-Request-Id") for _ in range(20)}
        self.assertEqual(len(ids), 20)
        self.assertTrue(all(i.startswith("req-") and len(i) == 36 for i in ids))
        self.assertEqual(self.server.get("/a", self.KEY, "X-Request-Id: mine:1").header("X-Client-Request-Id"), "mine:1")
        self.assertEqual(self.server.get("/a", self.KEY, "X-Request-Id: " + "x" * 128).header("X-Client-Request-Id"), "x" * 128)
        for bad in ("x" * 129, "x" * 8000, "a b", "é", ""):
            reply = self.server.get("/a", self.KEY, "X-Request-Id: " + bad)
            self.assertEqual((reply.status, reply.header("X-Client-Request-Id")), (200, None))

    def test_head(self):
        reply = self.server.get("/a", self.KEY, method="HEAD")
        self.assertEqual((reply.status, reply.body), (200, b""))
        self.assertGreater(int(reply.header("Content-Length")), 0)
        self.assertEqual(self.server.get("/a", method="HEAD").status, 401)

    def test_a_refused_request_leaves_the_connection_usable(self):
        bad = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        good = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer key-one\r\n\r\n"
        data, _ = self.server.exchange(bad * 3 + good)
        self.assertEqual([r.status for r in parse_replies(data)], [401, 401, 401, 200])

    def test_reply_headers_by_status(self):
        codes = {}
        for code in range(1, 100):
            reply = self.server.get(f"/error?code={code}", self.KEY)
            assert_error_shape(reply)
            if reply.json()["error"]["message"] != "A message.":
                break
            codes[reply.status] = reply
        for status in (429, 503):
            self.assertTrue(re.fullmatch(r"\d+", codes[status].header("Retry-After")))
        self.assertEqual(codes[500].header("x-should-retry"), "false")
        self.assertEqual(codes[400].header("Retry-After"), None)
        self.assertEqual(codes[400].json()["error"]["param"], "field")

    def test_json_errors_carry_the_byte_offset(self):
        reply = self.server.post("/json", b'{"a":1,"b":}', self.KEY)
        self.assertEqual(reply.status, 400)
        self.assertIn("byte 12", reply.json()["error"]["message"])


class Browsers(unittest.TestCase):
    def test_without_cors_no_origin_is_let_in(self):
        with Server() as server:
            reply = server.get("/a", "Origin: http://evil")
            self.assertIsNone(reply.header("Access-Control-Allow-Origin"))
            reply = server.get("/echo", "Origin: http://evil", "Access-Control-Request-Method: POST", method="OPTIONS")
            self.assertEqual(reply.status, 405)

    def test_cors(self):
        with Server("--cors", "http://good", "--cors", "https://also:8443", "--api-key", "k") as server:
            reply = server.get("/echo", "Origin: http://good", "Access-Control-Request-Method: POST",
                               "Access-Control-Request-Headers: authorization, x-stainless-os", method="OPTIONS")
            self.assertEqual(reply.status, 204)
            self.assertEqual(reply.header("Access-Control-Allow-Origin"), "http://good")
            self.assertEqual(reply.header("Access-Control-Allow-Methods"), "POST")
            self.assertEqual(reply.header("Access-Control-Allow-Headers"), "authorization, x-stainless-os")
            reply = server.get("/a", "Origin: https://also:8443", "Authorization: Bearer k")
            self.assertEqual((reply.status, reply.header("Access-Control-Allow-Origin")), (200, "https://also:8443"))
            reply = server.get("/late?n=3", "Origin: http://good", "Authorization: Bearer k")
            self.assertEqual(reply.header("Access-Control-Allow-Origin"), "http://good")
            for origin in ("http://evil", "http://good.evil", "null", "HTTP://GOOD"):
                reply = server.get("/a", "Origin: " + origin, "Authorization: Bearer k")
                self.assertIsNone(reply.header("Access-Control-Allow-Origin"))
                reply = server.get("/echo", "Origin: " + origin, "Access-Control-Request-Method: POST", method="OPTIONS")
                self.assertEqual(reply.status, 401)
            reply = server.get("/a", "Origin: http://good")  # an error is readable for the page, too
            self.assertEqual((reply.status, reply.header("Access-Control-Allow-Origin")), (401, "http://good"))

    def test_any_origin(self):
        with Server("--cors", "*") as server:
            self.assertEqual(server.get("/a", "Origin: http://x").header("Access-Control-Allow-Origin"), "*")

    def test_host_list(self):
        with Server("--allowed-host", "localhost", "--allowed-host", "[::1]") as server:
            for host, status in (("localhost", 200), ("LOCALHOST:99", 200), ("[::1]:80", 200), ("evil.example", 403), ("localhost.evil", 403)):
                data, _ = server.exchange(b"GET /a HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
                self.assertEqual([r.status for r in parse_replies(data)], [status], host)
            data, _ = server.exchange(b"GET /a HTTP/1.0\r\n\r\n")
            self.assertEqual([r.status for r in parse_replies(data)], [403])


class Streams(unittest.TestCase):
    def test_stream_is_complete_and_in_order(self):
        with Server() as server:
            reply = server.get("/stream?n=500&gap=0&bytes=100")
            self.assertEqual(reply.header("Content-Type"), "text/event-stream; charset=utf-8")
            self.assertEqual(reply.header("X-Test"), "stream")
            events = reply.body.decode().split("\n\n")
            self.assertEqual(events[:-2], [f"data: {i} " + "x" * 100 for i in range(500, 0, -1)])
            self.assertEqual(events[-2:], ["data: [DONE]", ""])

    def test_header_and_first_event_come_before_the_end(self):
        with Server() as server:
            s = server.connect()
            s.sendall(b"GET /stream?n=1 HTTP/1.1\r\nHost: x\r\nX-How: hang\r\n\r\n")
            self.assertIn(b"data: 1", read_until(s, b"data: 1 x\n\n"))
            s.close()

    def test_200_streams_at_once(self):
        with Server("--threads", "2") as server:
            done = []

            def one():
                body = server.get("/stream?n=50&gap=20").body
                done.append(body.count(b"data: "))

            threads = [threading.Thread(target=one) for _ in range(200)]
            for t in threads:
                t.start()
            for _ in range(10):
                self.assertEqual(server.get("/health").status, 200)
            for t in threads:
                t.join()
            self.assertEqual(done, [51] * 200)
            self.assertIsNotNone(server.wait_stats(lambda x: x["open"] == 0 and x["connections"] == 1))
            self.assertEqual(server.stats()["cut"], 0)

    def test_abort_breaks_the_framing(self):
        """Everything written arrives, the last chunk does not: an HTTP client sees an error, not an end."""
        with Server() as server:
            s = server.connect()
            s.sendall(b"GET /stream?n=3 HTTP/1.1\r\nHost: x\r\nX-How: abort\r\n\r\n")
            data, end = read_all(s)
            s.close()
            self.assertIn(b"data: 1 x\n\n", data)
            self.assertNotEqual(end, "open")
            with self.assertRaises(Broken):
                parse_replies(data)

    def test_http_1_0_stream_ends_by_close_and_abort_by_reset(self):
        with Server() as server:
            for how, ending in ((b"end", "closed"), (b"abort", "reset")):
                s = server.connect()
                s.sendall(b"GET /stream?n=2&gap=50 HTTP/1.0\r\nX-How: " + how + b"\r\n\r\n")
                data, end = read_all(s)
                self.assertEqual(end, ending)
                self.assertNotIn(b"chunked", data)
                s.close()

    def test_keep_alive_comments(self):
        with Server("--comment", "100ms") as server:
            s = server.connect()
            s.sendall(b"GET /stream?n=1 HTTP/1.1\r\nHost: x\r\nX-How: hang\r\n\r\n")
            data = read_until(s, b"data: 1")
            while data.count(b": keep-alive\n\n") < 3:
                piece = s.recv(1000)
                self.assertTrue(piece)
                data += piece
            s.close()

    def test_keep_alive_after_a_stream_and_after_a_late_reply(self):
        with Server() as server:
            raw = GET % b"/stream?n=2" + GET % b"/late?n=2" + GET % b"/a" + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            replies = parse_replies(server.exchange(raw)[0])
            self.assertEqual([r.status for r in replies], [200] * 4)
            self.assertEqual(replies[1].json(), {"late": True})

    def test_big_reply(self):
        with Server() as server:
            self.assertEqual(len(server.get("/big?bytes=5000000").body), 5000000)

    def test_idle_server_uses_no_cpu(self):
        """Connections that wait cost nothing: measured in clock ticks of the process, over a second of waiting."""
        with Server() as server:
            waiting = [server.connect() for _ in range(50)]
            for s in waiting:
                s.sendall(GET % b"/stream?n=0&gap=100000000")
            time.sleep(0.5)
            tasks = pathlib.Path(f"/proc/{server.process.pid}/task")

            def ticks():
                total = 0
                for task in tasks.iterdir():
                    fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
                    if (task / "comm").read_text().strip() == "http":
                        total += int(fields[11]) + int(fields[12])
                return total

            before = ticks()
            time.sleep(1.0)
            self.assertLessEqual(ticks() - before, 20)  # of about 100: a spinning thread would use them all
            for s in waiting:
                s.close()


class Drain(unittest.TestCase):
    def test_running_requests_finish_and_new_ones_do_not_begin(self):
        server = Server("--threads", "2")
        kept = server.connect()
        kept.sendall(GET % b"/a")
        read_until(kept, b"\r\n\r\n")
        stream = server.connect(timeout=20)
        stream.sendall(GET % b"/stream?n=100&gap=10")
        data = read_until(stream, b"data: 99")
        late = server.connect(timeout=20)
        late.sendall(GET % b"/late?n=200&gap=5")
        self.assertIsNotNone(server.wait_stats(lambda x: x["open"] == 2))
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(read_all(kept)[1], "closed")  # idle connections are closed at once
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                server.connect().close()
                time.sleep(0.01)
            except ConnectionRefusedError:
                break
        else:
            self.fail("it still accepts")
        rest, _ = read_all(stream)
        self.assertEqual(parse_replies(data + rest)[0].body.count(b"data: "), 101)
        self.assertEqual(parse_replies(read_all(late)[0])[0].json(), {"late": True})
        self.assertEqual(server.process.wait(20), 0)
        server.__exit__()

    def test_close_with_everything_open(self):
        """SIGINT: the server closes with requests in every state; the handles come back through on_gone."""
        server = Server("--threads", "2")
        open_ones = []
        for raw in (b"", b"GET /a HT", GET % b"/late?n=100000", GET % b"/stream?n=100000", b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel"):
            for _ in range(10):
                s = server.connect()
                s.sendall(raw)
                open_ones.append(s)
        self.assertIsNotNone(server.wait_stats(lambda x: x["open"] == 20))
        server.__exit__()
        for s in open_ones:
            self.assertNotEqual(read_all(s)[1], "open")
            s.close()


if __name__ == "__main__":
    http_harness.main("__main__")
