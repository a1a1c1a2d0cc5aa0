"""Malformed and ambiguous HTTP: every vector with the outcome that it must have (research rows A1-A7, A10, A14).

A refusal is one reply with one of the given statuses, in OpenAI's error shape, then a closed connection: in
particular no second reply, which would mean that smuggled bytes were run as a request.
"""

import unittest

import http_harness
from http_harness import Broken, Server, assert_error_shape, parse_replies

H = b"Host: x\r\n"
P = b"POST /a HTTP/1.1\r\n" + H
SMUGGLED = b"GET /a?smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = P + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = [
    # name, bytes, statuses
    ("CL and TE", P + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, {400}),
    ("TE xchunked and CL", P + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED, {400}),
    ("TE xchunked", P + b"Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400, 501}),
    ("TE identity, chunked", P + b"Transfer-Encoding: identity, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400, 501}),
    ("TE gzip, chunked", P + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400, 501}),
    ("TE chunked, then identity", P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400}),
    ("TE identity, then chunked", P + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400}),
    ("TE chunked twice", P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400}),
    ("space before TE's colon", P + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED, {400}),
    ("VT before TE's value", P + b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED, {400}),
    ("TE with a blank after it", P + b"Transfer-Encoding: chunked \r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400}),
    ("empty TE", P + b"Transfer-Encoding: \r\n\r\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, {400, 501}),
    ("TE in HTTP/1.0", b"POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", {400}),
    ("two CLs, 5 and 6", P + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhelloX", {400}),
    ("two CLs, 6 and 5", P + b"Content-Length: 6\r\nContent-Length: 5\r\n\r\nhelloX", {400}),
    ("two equal CLs", P + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", {400}),
    ("CL as a list", P + b"Content-Length: 5, 5\r\n\r\nhello", {400}),
    ("CL +5", P + b"Content-Length: +5\r\n\r\nhello", {400}),
    ("CL -5", P + b"Content-Length: -5\r\n\r\nhello", {400}),
    ("CL 5abc", P + b"Content-Length: 5abc\r\n\r\nhello", {400}),
    ("CL 0x5", P + b"Content-Length: 0x5\r\n\r\nhello", {400}),
    ("empty CL", P + b"Content-Length: \r\n\r\nhello", {400}),
    ("CL 2^64", P + b"Content-Length: 18446744073709551616\r\n\r\nhello", {400, 413}),
    ("CL 2^64 - 1", P + b"Content-Length: 18446744073709551615\r\n\r\nhello", {400, 413}),
    ("CL 2^63", P + b"Content-Length: 9223372036854775808\r\n\r\nhello", {400, 413}),
    ("bare LF line ends", b"POST /a HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello", {400}),
    ("one bare LF", b"GET /a HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", {400}),
    ("bare LF at the end of the head", b"GET /a HTTP/1.1\r\nHost: x\r\n\n", {400}),
    ("bare CR in a value", b"POST /a HTTP/1.1\r\nHost: x\rX: y\r\nContent-Length: 5\r\n\r\nhello", {400}),
    ("bare CR before CRLF", b"GET /a HTTP/1.1\r\nHost: x\r\r\n\r\n", {400}),
    ("folded line", b"POST /a HTTP/1.1\r\nHost: x\r\nX-A: b\r\n Content-Length: 5\r\n\r\nhello", {400}),
    ("folded line with tab", b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: b\r\n\tc\r\n\r\n", {400}),
    ("blank before the first header", b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n", {400}),
    ("no Host", b"GET /a HTTP/1.1\r\n\r\n", {400}),
    ("two Hosts", b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    ("two equal Hosts", b"GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", {400}),
    ("empty Host", b"GET /a HTTP/1.1\r\nHost: \r\n\r\n", {400}),
    ("Host evil/?", b"GET /a HTTP/1.1\r\nHost: evil/?\r\n\r\n", {400}),
    ("Host with user", b"GET /a HTTP/1.1\r\nHost: a@b\r\n\r\n", {400}),
    ("Host with a bad port", b"GET /a HTTP/1.1\r\nHost: a:b\r\n\r\n", {400}),
    ("NUL in a value", b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", {400}),
    ("NUL at the end of a value", b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\x00\r\n\r\n", {400}),
    ("NUL hides a CL", P + b"Content-Length: 5\x00\r\n\r\nhello", {400}),
    ("NULs that imitate a parsed header", b"GET /a HTTP/1.1\r\nHost: x\r\nX: a\x00\x00Content-Length\x00 5\r\n\r\nhello", {400}),
    ("NULs that imitate an end of the head", b"GET /a HTTP/1.1\r\nHost: x\x00\x00\x00\x00\r\n\r\n", {400}),
    ("NUL in a name", b"GET /a HTTP/1.1\r\nHost: x\r\nX\x00Y: a\r\n\r\n", {400}),
    ("escaped NUL in the path", b"GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("NUL in the path", b"GET /a\x00b HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("NUL and version in the path", b"GET /a\x00HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("header line without colon", b"GET /a HTTP/1.1\r\nHost: x\r\nfoo\r\n\r\n", {400}),
    ("empty header name", b"GET /a HTTP/1.1\r\nHost: x\r\n: v\r\n\r\n", {400}),
    ("empty header name last", b"GET /a HTTP/1.1\r\n: v\r\nHost: x\r\n\r\n", {400}),
    ("header name with a bracket", b"GET /a HTTP/1.1\r\nHost: x\r\nX(y): v\r\n\r\n", {400}),
    ("HTTP/9.9", b"GET /a HTTP/9.9\r\nHost: x\r\n\r\n", {400, 505}),
    ("HTTP/1.2", b"GET /a HTTP/1.2\r\nHost: x\r\n\r\n", {400, 505}),
    ("HTTP/2.0", b"GET /a HTTP/2.0\r\nHost: x\r\n\r\n", {400, 505}),
    ("http/1.1", b"GET /a http/1.1\r\nHost: x\r\n\r\n", {400, 505}),
    ("HTTP/0.9", b"GET /a\r\n\r\n", {400, 505}),
    ("space in the target", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("two spaces before the target", b"GET  /a HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("two spaces after the target", b"GET /a  HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("space after the version", b"GET /a HTTP/1.1 \r\nHost: x\r\n\r\n", {400}),
    ("tab in the target", b"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("raw 0xff in the target", b"GET /a\xff HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("fragment in the target", b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("broken escape", b"GET /a%4 HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("absolute target", b"GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("authority target", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", {400, 405}),
    ("asterisk target", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 405}),
    ("chunk size +5", CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n", {400}),
    ("chunk size 0x5", CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", {400}),
    ("chunk size -1", CHUNKED + b"-1\r\nhello\r\n0\r\n\r\n", {400}),
    ("empty chunk size", CHUNKED + b"\r\nhello\r\n0\r\n\r\n", {400}),
    ("chunk size 2^64", CHUNKED + b"10000000000000000\r\nhello\r\n0\r\n\r\n", {400, 413}),
    ("chunk size 2^64 - 1", CHUNKED + b"FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", {400, 408, 413}),
    ("no CRLF after a chunk", CHUNKED + b"5\r\nhelloXX0\r\n\r\n", {400}),
    ("chunk extension of 40 KB", CHUNKED + b"5;" + b"a" * 40000 + b"\r\nhello\r\n0\r\n\r\n", {400, 413, 431}),
    ("chunk size line without end", CHUNKED + b"0" * 60000, {400, 408, 413, 431}),
    ("header of 100 KB", b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100000 + b"\r\n\r\n", {431}),
    ("2,000 headers", b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(2000)) + b"\r\n", {431}),
    ("101 headers", b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(101)) + b"\r\n", {431}),
    ("target of 100 KB", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414}),
    ("target of 9 KB", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414}),
    ("2,000 query parameters", b"GET /a?" + b"&".join(b"a%d=b" % i for i in range(2000)) + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414, 431}),
    ("method of 100 KB", b"G" * 100000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414, 431}),
    ("method of 20 bytes", b"G" * 20 + b" /a HTTP/1.1\r\nHost: x\r\n\r\n", {400, 405, 501}),
    ("Expect of something else", P + b"Expect: 200-maybe\r\nContent-Length: 5\r\n\r\nhello", {417}),
    ("header of 50 MB", b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 50_000_000, {400, 431}),
    ("body over the limit", P + b"Content-Length: 2000000\r\n\r\n" + b"x" * 2000000, {413}),
    ("chunked body over the limit", CHUNKED + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 100, {413}),
    ("3 MB of one-byte chunks", CHUNKED + b"1\r\nx\r\n" * 500000 * 3, {413}),
]

ACCEPTED = [
    # name, bytes, bodies that must have been seen, in order
    ("plain GET", b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", [0]),
    ("HTTP/1.0 without Host", b"GET /a HTTP/1.0\r\n\r\n", [0]),
    ("HTTP/1.0 with body", b"POST /a HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", [5]),
    ("Host with port", b"GET /a HTTP/1.1\r\nHost: x:8000\r\n\r\n", [0]),
    ("IPv6 Host", b"GET /a HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", [0]),
    ("blanks around a value", b"GET /a HTTP/1.1\r\nHost:\t x\r\nX:  y  \r\nZ:\r\n\r\n", [0]),
    ("bytes above 0x7f in a value", b"GET /a HTTP/1.1\r\nHost: x\r\nX: \xc3\xa9\r\n\r\n", [0]),
    ("lower-case chunked", P.replace(b"Host", b"hOST") + b"transfer-encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n", [5]),
    ("chunk extension", CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", [5]),
    ("trailer with a Content-Length", CHUNKED + b"5\r\nhello\r\n0\r\nX-T: 1\r\nContent-Length: 3\r\n\r\n", [5]),
    ("three at once", b"".join(b"GET /a?%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(3)), [0, 0, 0]),
    ("thirty at once", b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 30, [0] * 30),
    ("100-continue", P + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", [5]),
    ("GET with a body", b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /a HTTP/1.1\r\nHost: x\r\n\r\n", [5, 0]),
    ("leading empty lines", b"\r\n\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", [0]),
    ("leading zeros in CL", P + b"Content-Length: 0005\r\n\r\nhello", [5]),
    ("98 headers", b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(98)) + b"\r\n", [0]),
    ("query with all kinds of separators", b"GET /a?x=1&y==%26&&z HTTP/1.1\r\nHost: x\r\n\r\n", [0]),
    ("header of 12 KB", b"GET /a HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 12000 + b"\r\n\r\n", [0]),
]

# Lenient in the library below, but harmless as long as the body is the same for every reader: either is right.
EITHER = [
    ("bare LF in chunk framing", CHUNKED + b"5\nhello\n0\n\n", 5),
    ("NUL LF as a line end", b"POST /a HTTP/1.1\r\nHost: x\x00\nContent-Length: 5\r\n\r\nhello", 5),
]


class Vectors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--body-timeout", "1s", "--header-timeout", "1s", "--body", "1M", "--log-level", "error")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def check_alive(self):
        self.assertEqual(self.server.get("/health").status, 200)

    def test_refused(self):
        for name, raw, statuses in REFUSED:
            with self.subTest(name):
                data, end = self.server.exchange(raw)
                self.assertNotEqual(end, "open", "the connection must be closed")
                if not data and len(raw) > 1 << 20:
                    continue  # so much was still on its way that the kernel reset the connection: closed it is
                if data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
                    data = data[25:]
                replies = parse_replies(data)
                self.assertEqual(len(replies), 1, "exactly one reply")
                self.assertIn(replies[0].status, statuses)
                assert_error_shape(replies[0])
                self.assertEqual(replies[0].header("Connection"), "close")
        self.check_alive()

    def test_accepted(self):
        for name, raw, bodies in ACCEPTED:
            with self.subTest(name):
                last = b"GET /a?last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" if b"HTTP/1.0" not in raw else b""
                data, end = self.server.exchange(raw + last)
                self.assertEqual(end, "closed")
                replies = parse_replies(data)
                self.assertEqual([r.status for r in replies], [200] * (len(bodies) + bool(last)))
                self.assertEqual([r.json()["bytes"] for r in replies][: len(bodies)], bodies)
                if last:
                    self.assertEqual(replies[-1].json()["query"], "last")
        self.check_alive()

    def test_either(self):
        for name, raw, body in EITHER:
            with self.subTest(name):
                data, end = self.server.exchange(raw + SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                self.assertEqual(end, "closed")
                replies = parse_replies(data)
                if replies[0].status == 200:
                    self.assertEqual(replies[0].json()["bytes"], body)
                else:
                    self.assertEqual([r.status for r in replies], [400])

    def test_garbage_is_closed_without_a_hang(self):
        for raw in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"\r\n" * 5 + b"\x00\r\n\r\n", b"SSH-2.0-x\r\n"):
            data, end = self.server.exchange(raw)
            self.assertNotEqual(end, "open")
            for reply in parse_replies(data):
                self.assertIn(reply.status, {400, 408})
        self.check_alive()

    def test_refused_the_same_when_it_comes_in_small_pieces(self):
        import time

        for name, raw, statuses in REFUSED:
            if len(raw) > 300:
                continue
            with self.subTest(name):
                s = self.server.connect()
                for i in range(0, len(raw), 7):
                    try:
                        s.sendall(raw[i : i + 7])
                    except OSError:
                        break
                    time.sleep(0.0005)
                data, end = http_harness.read_all(s)
                s.close()
                self.assertNotEqual(end, "open")
                try:
                    replies = parse_replies(data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
                except Broken as broken:
                    self.fail(f"broken reply {broken}")
                self.assertLessEqual(len(replies), 1)
                for reply in replies:
                    self.assertIn(reply.status, statuses)
                    assert_error_shape(reply)


if __name__ == "__main__":
    http_harness.main("__main__")
