"""The probes of scripts/e2e-abuse.

Each part starts from a healthy node and ends with the same checks: the node answers, its log holds no panic, its
memory is bounded. What is expected is a code (or a set of codes) and, for each failure, the API's error shape.
"""
import argparse
import http.client
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zlib

PUSH = "/api/v1/push"
V2 = {"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"}
MIB = 1 << 20
PARTS = {}
PASSED, FAILED = [], []


def check(name, good, detail=""):
    (PASSED if good else FAILED).append(name)
    if not good:
        print(f"FAILED {name}: {str(detail)[:600]}", flush=True)
    elif VERBOSE:
        print(f"ok     {name}: {str(detail)[:160]}", flush=True)


def part(function):
    PARTS[function.__name__] = function
    return function


# --- the node -------------------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Node:
    def __init__(self, binary, data, args=(), env=None):
        self.binary, self.data, self.args, self.env = binary, data, list(args), env or {}
        self.port, self.grpc = free_port(), free_port()
        self.log = os.path.join(tempfile.mkdtemp(dir=ROOM), "log")
        self.process = None

    def command(self):
        return [self.binary, "--data-dir", self.data, "--http-listen", f"127.0.0.1:{self.port}",
                "--grpc-listen", f"127.0.0.1:{self.grpc}", "--partitions", "8", *self.args]

    def start(self, within=60):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env={**os.environ, **self.env})
        by = time.time() + within
        while time.time() < by:
            if self.process.poll() is not None:
                raise RuntimeError(f"the node ended with {self.process.returncode}: {self.log_text()[-1000:]}")
            try:
                if self.ask("GET", "/-/ready").code == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"the node is not ready: {self.log_text()[-1000:]}")

    def stop(self, sign=signal.SIGTERM, within=40):
        self.process.send_signal(sign)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return "killed after its time"

    def log_text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) << 10

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, method, path, body=None, headers=None, within=60):
        return Answer(self.port, method, path, body, headers or {}, within)

    def push(self, message, headers=None, tenant=None, packed=True, **more):
        headers = dict(headers or {})
        if tenant is not None:
            headers["X-Scope-OrgID"] = tenant
        return self.ask("POST", PUSH, snappy(message) if packed else message, headers, **more)

    def query(self, text, tenant=None, path="/api/v1/query", within=60, **params):
        form = urllib.parse.urlencode({"query": text, **params})
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if tenant:
            headers["X-Scope-OrgID"] = tenant
        return self.ask("POST", path, form, headers, within)

    def raw(self, data, timeout=10, end=False):
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as s:
            s.settimeout(timeout)
            got = b""
            try:
                s.sendall(data)
                if end:
                    s.shutdown(socket.SHUT_WR)
                while True:
                    more = s.recv(65536)
                    if not more:
                        return got
                    got += more
            except socket.timeout:
                return got + b"<timeout>"
            except OSError as error:
                return got + f"<{error}>".encode()

    def is_well(self, name, rss_mib=None):
        try:
            healthy, ready = self.ask("GET", "/-/healthy", within=5).code, self.ask("GET", "/-/ready", within=5).code
        except OSError as error:
            healthy = ready = error
        check(f"{name}: healthy after", (healthy, ready) == (200, 200), (healthy, ready))
        text = self.log_text()
        check(f"{name}: no panic in the log", "panic" not in text, text[-1500:])
        if rss_mib:
            check(f"{name}: memory falls back", self.falls_below(rss_mib * MIB), f"{self.rss() / MIB:.0f} MiB")

    def falls_below(self, rss, within=10):
        by = time.time() + within
        while self.rss() > rss and time.time() < by:
            time.sleep(0.1)
        return self.rss() <= rss


class Answer:
    def __init__(self, port, method, path, body, headers, timeout):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        began = time.time()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            self.code, self.headers, self.body = response.status, response.headers, response.read()
        except TimeoutError:
            self.code, self.headers, self.body = 0, {}, b"no answer in time"
        finally:
            connection.close()
        self.took = time.time() - began

    def json(self):
        return json.loads(self.body)

    def __str__(self):
        return f"{self.code} in {self.took:.2f} s {self.body[:300]}"


def expect(name, answer, codes, text=None, seconds=None):
    """The code is one of `codes`; a failure has the API's shape, and its message `text` in it."""
    codes = (codes,) if isinstance(codes, int) else codes
    good = answer.code in codes
    if answer.code >= 400:
        try:
            said = answer.json()
            good &= said["status"] == "error" and bool(said["error"]) and bool(said["errorType"])
            good &= len(answer.body) < 20_000
            good &= text is None or re.search(text, said["error"]) is not None
        except (ValueError, KeyError, TypeError):
            good = False
    if seconds:
        good &= answer.took < seconds
    check(name, good, answer)
    return answer


# --- remote write, by hand ------------------------------------------------------------------------------------------

def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, value):
    """Bytes and text as length-delimited, floats as doubles, integers as varints."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    return varint(number << 3) + varint(value)


def zigzag(n):
    return n << 1 ^ n >> 63


def snappy(data, declared=None):
    """Snappy's block format, literals only."""
    out = [varint(len(data) if declared is None else declared)]
    for at in range(0, len(data), 65536):
        piece = data[at:at + 65536]
        out += [b"\xf4" + struct.pack("<H", len(piece) - 1), piece]
    return b"".join(out)


def sample(value, at):
    return field(2, field(1, float(value)) + field(2, at))


def series(labels, *rest):
    """`labels` a dict, or pairs in the order to send."""
    pairs = sorted(labels.items()) if isinstance(labels, dict) else labels
    return field(1, b"".join(field(1, field(1, n) + field(2, v)) for n, v in pairs) + b"".join(rest))


def v2(symbols, *timeseries):
    return b"".join(field(4, s) for s in symbols) + b"".join(field(5, t) for t in timeseries)


def refs(*numbers):
    return field(1, b"".join(varint(n) for n in numbers))


def histogram(at, count=1, sum_=1.0, schema=0, spans=((0, 1),), deltas=(1,), **more):
    out = field(1, count) + field(3, sum_) + field(4, zigzag(schema)) + field(5, 1e-128) + field(6, 0)
    out += b"".join(field(11, field(1, zigzag(o)) + field(2, n)) for o, n in spans)
    out += field(12, b"".join(varint(zigzag(d)) for d in deltas)) + field(15, at)
    if "custom" in more:
        out += field(16, b"".join(struct.pack("<d", v) for v in more["custom"]))
    return out


def now_ms():
    return int(time.time() * 1000)


# --- writes ---------------------------------------------------------------------------------------------------------

@part
def bodies(node):
    good = series({"__name__": "up", "job": "a"}, sample(1, now_ms()))
    expect("a good write", node.push(good), 204)
    rng = random.Random(7)
    packed = snappy(good)
    for name, body in {
        "empty": b"", "snappy truncated": packed[:-3], "snappy without literals": packed[:2],
        "snappy declares 4 GB": varint(2 ** 32 - 1) + packed[1:], "snappy declares 2^63": varint(2 ** 63) + packed[1:],
        "snappy declares 100 MB": varint(100 << 20) + packed[1:], "snappy declares too little": varint(3) + packed[1:],
        "snappy copies from before its start": varint(100) + b"\x01\x05\xfe\xff\xff",
        "garbage": rng.randbytes(5000), "zeros": bytes(5000), "ones": b"\xff" * 5000, "json": b'{"a":1}',
        "gzip": zlib.compress(good), "protobuf unpacked": good,
    }.items():
        codes = (204, 400) if name in ("empty", "zeros") else 400
        expect(f"body: {name}", node.push(body, packed=False), codes)
    for name, message in {
        "truncated": good[:-2], "truncated in a length": good[:1], "wire type 3": b"\x0b\x0c", "wire type 7": b"\x0f",
        "series as varint": b"\x08\x01", "series as fixed64": b"\x09" + bytes(8), "field 0": b"\x00\x00",
        "varint of 11 bytes": b"\x08" + b"\x80" * 11, "length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
        "label as a number": field(1, field(1, 7)), "value as text": field(1, field(2, field(1, "1.0"))),
        "nested 10000 deep": deep(10_000), "v2 sent as v1": v2(["", "__name__", "up"], refs(1, 2)),
    }.items():
        expect(f"protobuf: {name}", node.push(message), (204, 400) if name.startswith("v2") else 400)
    for seed in range(150):
        rng = random.Random(seed)
        bent = bytearray(good * 3)
        for _ in range(rng.randint(1, 6)):
            bent[rng.randrange(len(bent))] = rng.randrange(256)
        answer = node.push(bytes(bent), V2 if seed % 3 == 0 else None)
        if answer.code not in (204, 400):
            check(f"protobuf bent by seed {seed}", False, answer)
    expect("v1 sent as v2", node.push(good, V2), 400)
    for headers, code in (({"Content-Type": "text/plain"}, 415), ({"Content-Encoding": "gzip"}, 415),
                          ({"Content-Type": "application/x-protobuf;proto=x"}, 415), ({"Content-Type": "\xff"}, 415)):
        expect(f"headers {headers}", node.push(good, headers), code)


def deep(n):
    message = b""
    for _ in range(n):
        message = field(1, message)
    return message


@part
def samples(node):
    now = now_ms()
    for name, labels, code in (
        ("unsorted", [("job", "a"), ("__name__", "up")], (204, 400)),
        ("repeated", [("__name__", "up"), ("a", "1"), ("a", "2")], 400),
        ("repeated apart", [("__name__", "up"), ("a", "1"), ("b", "1"), ("a", "1")], 400),
        ("no metric name", [("a", "1")], 400), ("none", [], 400), ("empty metric name", [("__name__", "")], 400),
        ("empty label name", [("__name__", "up"), ("", "1")], 400),
        ("empty label value", [("__name__", "up_e"), ("a", "")], (204, 400)),
        ("name not UTF-8", [("__name__", "up"), (b"\xff\xfe", "1")], 400),
        ("value not UTF-8", [("__name__", "up"), ("a", b"\xc3\x28")], 400),
        ("metric not UTF-8", [("__name__", b"\xed\xa0\x80")], 400),
        ("10000 labels", [("__name__", "up")] + [(f"l{i:05}", "1") for i in range(10_000)], 400),
        ("a value of 1 MB", [("__name__", "up"), ("a", "x" * MIB)], 400),
        ("a name of 1 MB", [("__name__", "up"), ("a" * MIB, "x")], 400),
        ("a NUL", [("__name__", "up_nul"), ("a", "\0")], (204, 400)),
        ("UTF-8 names", [("__name__", "темп.°C"), ("ключ", "значение")], 204),
    ):
        answer = expect(f"labels: {name}", node.push(series(labels, sample(1, now)), tenant="labels"), code)
        if name == "repeated":
            expect("labels: the good are stored beside the bad", node.push(
                series(labels, sample(1, now)) + series({"__name__": "beside"}, sample(1, now)), tenant="labels"), 400)
            found = node.query("beside", "labels").json()["data"]["result"]
            check("labels: what was good is there", len(found) == 1, found)
            check("labels: the message counts", b"1 of 2" in node.push(
                series(labels, sample(1, now)) + series({"__name__": "beside"}, sample(1, now + 1)),
                tenant="labels").body, answer)
    stale = struct.unpack("<d", struct.pack("<Q", 0x7ff0000000000002))[0]
    for name, value in (("NaN", float("nan")), ("inf", float("inf")), ("-inf", float("-inf")), ("stale", stale),
                        ("-0", -0.0), ("denormal", 5e-324)):
        expect(f"value {name}", node.push(series({"__name__": f"v_{name.strip('-')}", "s": name}, sample(value, now)),
                                          tenant="values"), 204)
    for at, code in ((-2 ** 63, (204, 400)), (0, (204, 400)), (-1, (204, 400)), (-10 ** 15, (204, 400)),
                     (2 ** 63 - 1, 400), (2 ** 62, 400), (now + 3_600_000, 400), (now, (204, 400)), (now + 1, 204)):
        expect(f"time {at}", node.push(series({"__name__": "t"}, sample(1, at)), tenant="times"), code)
    expect("times: read back", node.query("t", "times"), 200)
    expect("times: read over everything", node.query("count_over_time(t[290y])", "times"), 200)
    for name, h, code in (
        ("good", histogram(now), 204),
        ("a span of 2^32-1", histogram(now, spans=((0, 2 ** 32 - 1),)), 400),
        ("many huge spans", histogram(now, spans=((0, 2 ** 31),) * 50), 400),
        ("offset i32::MAX", histogram(now, spans=((2 ** 31 - 1, 1), (2 ** 31 - 1, 1)), deltas=(1, 0)), 400),
        ("offset i32::MIN", histogram(now, spans=((-2 ** 31, 1),)), (204, 400)),
        ("negative second offset", histogram(now, spans=((0, 1), (-5, 1)), deltas=(1, 0), count=2), 400),
        ("schema 127", histogram(now, schema=127), 400), ("schema -2^31", histogram(now, schema=-2 ** 31), 400),
        ("count too low", histogram(now, deltas=(5,)), 400), ("negative bucket", histogram(now, deltas=(-5,)), 400),
        ("deltas overflow", histogram(now, spans=((0, 2),), deltas=(2 ** 63 - 1, 2 ** 63 - 1)), 400),
        ("more buckets than spans", histogram(now, deltas=(1,) * 100), 400),
        ("custom bounds unsorted", histogram(now, schema=-53, spans=((0, 2),), deltas=(1, 0), count=2,
                                             custom=(2.0, 1.0)), 400),
        ("custom bounds NaN", histogram(now, schema=-53, spans=((0, 1),), custom=(float("nan"),)), 400),
        ("100000 spans of nothing", histogram(now, spans=((0, 0),) * 100_000), (204, 400)),
    ):
        message = series({"__name__": "h", "case": name}, field(4, h))
        expect(f"histogram: {name}", node.push(message, tenant="histograms"), code, seconds=10)
    expect("histograms: read back", node.query("histogram_quantile(0.9, h)", "histograms"), 200)
    v2_series = refs(1, 2) + field(2, field(1, 1.0) + field(2, now + 5))
    expect("v2: good", node.push(v2(["", "__name__", "up"], v2_series), V2), 204)
    for name, message in {
        "symbol out of range": v2(["", "__name__", "up"], refs(1, 3) + v2_series[-20:]),
        "symbol 2^32-1": v2(["", "__name__"], refs(1, 2 ** 32 - 1)),
        "odd references": v2(["", "__name__", "up"], refs(1) + field(2, field(1, 1.0) + field(2, now))),
        "first symbol not empty": v2(["x"], refs(0) + v2_series),
        "no symbols": v2([], v2_series), "symbols not UTF-8": v2(["", "__name__", b"\xff"], v2_series),
    }.items():
        expect(f"v2: {name}", node.push(message, V2), 400)


@part
def tenants(node):
    body = series({"__name__": "up"}, sample(1, now_ms()))
    for name in ("a" * 151, "a/b", "..", ".", "__markers__", "a\\b", "a b\tc", "a|b", "a%2fb", "a,b", '"', "\xe9"):
        expect(f"tenant {name[:20]!r}", node.push(body, tenant=name), 400)
        expect(f"query of tenant {name[:20]!r}", node.query("up", name), 400)
    expect("tenant without a name", node.push(body, tenant=""), 401)
    expect("tenant of 150 letters", node.push(body, tenant="a" * 150), 204)
    twice = node.raw(b"GET /api/v1/query?query=up HTTP/1.1\r\nHost: x\r\nX-Scope-OrgID: a\r\nX-Scope-OrgID: b\r\n"
                     b"Connection: close\r\n\r\n")
    check("two tenants at once", b" 400 " in twice, twice[:100])
    count, before, began, errors = (300 if QUICK else 2000), node.rss(), time.time(), []

    def work(first):
        connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
        for i in range(first, count, 8):
            connection.request("POST", PUSH, snappy(body), {"X-Scope-OrgID": f"many-{i}"})
            response = connection.getresponse()
            response.read()
            if response.status != 204:
                errors.append(response.status)
        connection.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    took, grown = time.time() - began, (node.rss() - before) / count
    print(f"{count} tenants in {took:.1f} s, {grown / 1024:.0f} KiB each", flush=True)
    check("many tenants", not errors, errors[:5])
    check("a tenant costs below 64 KiB", grown < 64 << 10, grown)
    expect("a tenant that never wrote", node.query("up", "never-seen"), 200)
    expect("the last of many", node.query("up", f"many-{count - 1}"), 200)


# --- connections ----------------------------------------------------------------------------------------------------

@part
def connections(node):
    head = b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\n"
    base = node.rss()
    answer = node.raw(head + b"Content-Length: 1000000000\r\n\r\nabc")
    check("a body of 1 GB is refused at its head", b" 413 " in answer and b"<timeout>" not in answer, answer[:200])
    answer = node.raw(head + b"Content-Length: 99999999999999999999999\r\n\r\n")
    check("a length beyond 64 bits", b" 400 " in answer, answer[:200])
    answer = node.raw(head + b"Content-Length: -1\r\n\r\n")
    check("a negative length", b" 400 " in answer, answer[:200])
    answer = node.raw(head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", timeout=3)
    check("a length and chunks", b" 400 " in answer, answer[:200])
    endless(node, base)
    answer = node.raw(b"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                      b"Content-Length: 10000000\r\n\r\n")
    check("a form of 10 MB", b" 413 " in answer, answer[:200])
    for name, data, code in (
        ("garbage", random.Random(3).randbytes(3000) + b"\r\n\r\n", b"400"),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), b"400"),
        ("a header of 1 MB", b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * MIB + b"\r\n\r\n", b"431"),
        ("10000 headers", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", b"431"),
        ("an address of 1 MB", b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"4"),
        ("HTTP/1.1 spelled wrong", b"GET / HTTP/9.9\r\n\r\n", b"400"),
        ("no host", b"GET /-/healthy HTTP/1.1\r\nConnection: close\r\n\r\n", b""),
        ("bad chunk", head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        ("chunk of 2^64", head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", b"400"),
    ):
        answer = node.raw(data, timeout=5)
        status = answer[9:12]
        check(f"connection: {name}", (status.startswith(code) or answer.startswith(b"<[Errno"))
              and b"<timeout>" not in answer, answer[:200])
    pipelined = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n" * 50 + b"\x00\x01garbage\r\n\r\n"
    answer = node.raw(pipelined, timeout=5)
    check("pipelined: the good are answered, the garbage ends it",
          answer.count(b" 200 OK") == 50 and b"<timeout>" not in answer, answer[-200:])
    for path in (b"/-/healthy", b"/metrics", b"/api/v1/query?query=vector(1)"):
        answers = [node.raw(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n", end=True, timeout=5) for _ in range(50)]
        without = [answer[:100] for answer in answers if not answer.startswith(b"HTTP/1.1 200 OK")]
        check(f"a half-closed client gets its answer of {path.decode()}", not without, without[:3])
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    answer = node.raw(preface, timeout=1)
    check("HTTP/2 without TLS is spoken", len(answer) > 9 and answer[3] == 4, answer[:30])
    answer = node.raw(preface + b"\xff" * 3000, timeout=5)
    check("garbage within HTTP/2 ends it", b"<timeout>" not in answer, answer[:60])
    rapid_resets(node, preface)
    for method, path, code in (
        ("GET", "/nothing", 404), ("GET", "/api/v1/nothing", 404), ("DELETE", "/api/v1/query", 405),
        ("GET", PUSH, 405), ("PUT", PUSH, 405), ("BREW", "/api/v1/query", 405), ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404), ("GET", "/api/v1/label/%ff/values", 400),
        ("GET", "/api/v1/label/" + "a" * 60_000 + "/values", (200, 400, 414)), ("GET", "//", 404),
        ("GET", "/api/v1/query?query=%zz", 400), ("GET", "/api/v1/query?" + "a=b&" * 11_000, (400, 414)),
        ("TRACE", "/", 405), ("CONNECT", "/", (400, 404, 405)),
    ):
        expect(f"{method} {path[:40]}", node.ask(method, path), code)
    slow(node)
    idle(node)


def endless(node, base):
    """Chunks without end: refused at the largest body, with little held."""
    s = socket.create_connection(("127.0.0.1", node.port), timeout=20)
    s.sendall(b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk, sent, answer = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n", 0, b""
    try:
        while sent < 1000:
            s.sendall(chunk)
            sent += 1
    except OSError:
        pass
    try:
        answer = s.recv(4096)
    except OSError:
        pass
    s.close()
    check("chunks without end are cut off", sent < 150 and (b" 413 " in answer or not answer), (sent, answer[:100]))
    check("chunks without end leave no memory", node.falls_below(base + 60 * MIB), f"{(node.rss() - base) / MIB} MiB")


def rapid_resets(node, preface):
    """HTTP/2 streams opened and reset at once (CVE-2023-44487): the node ends the connection or keeps calm."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as s:
        headers = b"\x82\x84\x86\x41\x01x"
        try:
            s.sendall(preface)
            for i in range(5000):
                stream = struct.pack(">I", 2 * i + 1)
                s.sendall(struct.pack(">I", len(headers))[1:] + b"\x01\x05" + stream + headers
                          + b"\x00\x00\x04\x03\x00" + stream + b"\x00\x00\x00\x08")
        except OSError:
            pass
    expect("rapid resets", node.query("1"), 200)


def slow(node):
    """A second node with short deadlines: half a header, a body byte by byte, an answer that is not taken."""
    s = socket.create_connection(("127.0.0.1", node.port))
    s.sendall(b"POST /api/v1/push HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
    s.shutdown(socket.SHUT_WR)
    s.settimeout(10)
    answer = s.recv(4096)
    check("a body that breaks off", b" 400 " in answer or not answer, answer[:200])
    s.close()


def idle(node):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(3000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    before, open_ = node.rss(), []
    for i in range(count):
        s = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        if i % 3 == 1:
            s.sendall(b"GET /-/hea")
        elif i % 3 == 2:
            s.sendall(b"POST /api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + bytes(100))
        open_.append(s)
    time.sleep(0.5)
    grown = (node.rss() - before) / count
    expect(f"beside {count} idle connections: a query", node.query("1"), 200, seconds=5)
    expect("beside them: a write", node.push(series({"__name__": "idle"}, sample(1, now_ms()))), 204, seconds=10)
    check("an idle connection costs below 64 KiB", grown < 64 << 10, grown)
    print(f"{count} idle connections, {grown / 1024:.0f} KiB each", flush=True)
    [s.close() for s in open_]


# --- queries --------------------------------------------------------------------------------------------------------

def fill(node, tenant, count, length, step_ms=15_000):
    newest = now_ms()
    for first in range(0, count, 500):
        message = b"".join(
            series({"__name__": f"m{i % 10}", "i": str(i), "job": f"j{i % 7}"},
                   *(sample(i + k, newest - (length - k) * step_ms) for k in range(length)))
            for i in range(first, min(first + 500, count)))
        expect(f"filling {tenant}", node.push(message, tenant=tenant), 204)


@part
def queries(node):
    fill(node, "heavy", 2000 if QUICK else 5000, 60)
    fill(node, "small", 20, 60)
    base = node.rss()
    print(f"with data: {base / MIB:.0f} MiB", flush=True)
    now = time.time()
    bad, no, refused = 400, 422, (400, 422, 429, 503)
    ask = lambda text, **p: node.query(text, "heavy", **p)
    ranged = lambda text, start=now - 900, end=now, step="15", **p: node.query(
        text, "heavy", "/api/v1/query_range", start=start, end=end, step=step, **p)
    for name, text, codes in (
        ("regex bomb", '{__name__=~"(a{1000}){1000}"}', bad), ("regex (a*)*", '{__name__=~"((a*)*)*b"}', (200, 400)),
        ("regex of 100 kB", '{__name__=~"' + "a|" * 50_000 + '"}', (200, 400)),
        ("regex unicode classes", '{__name__=~"' + r"\\pL{100}" * 100 + '"}', (200, 400)),
        ("parentheses 500000 deep", "(" * 500_000 + "1" + ")" * 500_000, bad),
        ("minus 1000000 deep", "-" * 1_000_000 + "1", bad), ("1 MB of text", "up" * 524_288, (200, 400)),
        ("1 MB of sums", "+".join(["1"] * 524_288), (200, 400)),
        ("1 MB of powers", "^".join(["1"] * 524_288), bad), ("1 MB of commas", "sum by (" + "a," * 524_288, bad),
        ("sum nested 10000 deep", "sum(" * 10_000 + "m1" + ")" * 10_000, bad),
        ("a string without end", '"' + "x" * 100_000, bad), ("NUL", "up\0", bad), ("emoji", "😀", bad),
        ("empty", "", bad), ("comment only", "# nothing", bad),
        ("topk(1e18)", "topk(1e18, m1)", 200), ("topk(NaN)", "topk(NaN, m1)", (200, 422)),
        ("topk(-Inf)", "topk(-Inf, m1)", (200, 422)), ("bottomk(Inf)", "bottomk(Inf, m1)", (200, 422)),
        ("quantile(NaN)", "quantile(NaN, m1)", 200), ("quantile(1e308)", "quantile(1e308, m1)", 200),
        ("quantile_over_time(NaN)", "quantile_over_time(NaN, m1[5m])", 200),
        ("offset 290y", "m1 offset 290y", (200, 400)), ("offset 100000y", "m1 offset 100000y", bad),
        ("offset -290y", "m1 offset -290y", (200, 400)), ("@ 1e300", "m1 @ 1e300", bad),
        ("@ NaN", "m1 @ NaN", bad), ("@ Inf", "m1 @ Inf", bad), ("@ 9e15", "m1 @ 9e15", (200, 400)),
        ("@ -9e15 offset 290y", "m1 @ -9e15 offset 290y", (200, 400)),
        ("range 290y", "count_over_time(m1[290y])", (200, 400)),
        ("holt_winters extremes", "predict_linear(m1[5m], 1e308)", 200),
        ("round(0)", "round(m1, 0)", 200), ("clamp NaN", "clamp(m1, NaN, NaN)", 200),
        ("label_replace regex bomb", 'label_replace(m1, "x", "$1", "i", "(.{1000}){1000}")', (400, 422)),
        ("label_replace grows", grow("m1", 24), refused), ("label_join grows", join("m1", 24), refused),
        ("label_replace bad name", 'label_replace(m1, "\\xff", "$1", "i", "(.*)")', (200, 400, 422)),
        ("histogram_quantile of floats", "histogram_quantile(NaN, m1)", 200),
        ("many to many", "m1 + on() m1", no), ("group left everything", "m1 * on(job) group_left m2", (200, 422)),
        ("vector(1e999)", "vector(1e999)", (200, 400)), ("0x", "0x", bad), ("1e", "1e", bad),
    ):
        expect(f"query: {name}", ask(text), codes, seconds=30)
    for name, params, codes in (
        ("step 0", dict(step="0"), bad), ("step -1", dict(step="-1"), bad), ("step NaN", dict(step="NaN"), bad),
        ("step Inf", dict(step="Inf"), bad), ("step 1e300", dict(step="1e300"), bad), ("step 1ns", dict(step="1e-9"), bad),
        ("step text", dict(step="soon"), bad), ("step empty", dict(step=""), bad),
        ("step 1e9 s", dict(step="1e9"), 200), ("step 9e9 s", dict(step="9e9"), (200, 400)),
        ("start after end", dict(start=now, end=now - 10), bad),
        ("11002 points", dict(start=now - 11_001, end=now, step="1"), bad),
        ("11000 points", dict(start=now - 10_999, end=now, step="1"), 200),
        ("start NaN", dict(start="NaN"), bad), ("start 1e300", dict(start="1e300", end="1e301"), bad),
        ("start -1e300", dict(start="-1e300"), bad), ("end Inf", dict(end="Inf"), bad),
        ("all of time", dict(start="-9e15", end="9e15", step="9e9"), (200, 400)),
        ("the end of time", dict(start="9223372036854775.807", end="9223372036854775.807"), (200, 400)),
        ("the start of time", dict(start="-9223372036854775.808", end="-9223372036854775.808"), (200, 400)),
        ("timeout -1", dict(timeout="-1"), (400, 503)), ("timeout NaN", dict(timeout="NaN"), bad),
        ("limit -1", dict(limit="-1"), bad), ("limit 1e30", dict(limit="1" + "0" * 30), bad),
        ("lookback 290y", dict(lookback_delta="290y"), 200),
    ):
        expect(f"range query: {name}", ranged("sum(m1)", **params), codes, seconds=20)
    expect("points beyond the budget", ranged('{__name__=~".+"}', now - 10_999, now, "1"), refused + (200,), seconds=60)
    print(f"after 11,000 points of everything: {node.rss() / MIB:.0f} MiB", flush=True)
    expect("everything", ask('{__name__=~".+"}'), 200, seconds=20)
    expect("count_values of everything", ask('count_values("v", {__name__=~".+"})'), 200, seconds=20)
    expect("count_values of a million values", ranged('count_values("v", {__name__=~".+"} * time() + rand)'.replace(
        " + rand", ""), now - 900, now, "1"), refused + (200,), seconds=60)
    for name, text in (("1 ms over 10 years", "max_over_time(m1[10y:1ms])"), ("1 ms over 290 years", "max_over_time(vector(1)[290y:1ms])"),
                       ("1 ms over 30 days of everything", 'max_over_time({__name__=~".+"}[30d:1ms])'),
                       ("nested", "max_over_time(max_over_time(max_over_time(m1[1d:1ms])[1d:1ms])[1d:1ms])"),
                       ("of time()", "sum_over_time(time()[10y:1ms])")):
        peak = Peak(node)
        answer = expect(f"subquery: {name}", ask(text), refused, seconds=30)
        print(f"subquery {name}: {answer.code} in {answer.took:.2f} s, {(peak.end() - base) / MIB:+.0f} MiB", flush=True)
    expect("a timeout of 1 ms", ranged('sum(rate({__name__=~".+"}[15m]))', timeout="1ms"), 503, "time", seconds=5)
    expect("a timeout of 100 ms", ask("max_over_time((m1 + m2)[2d:1s])", timeout="100ms"), (503, 422), seconds=5)
    form = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}
    expect("a compressed form", node.ask("POST", "/api/v1/query", zlib.compress(b"query=1"), form), 415)
    expect("a form as JSON", node.ask("POST", "/api/v1/query", "{}", {"Content-Type": "application/json"}), 415)
    many = "&".join(f"match[]=m{i}" for i in range(9000))
    expect("9000 matches", node.ask("GET", "/api/v1/series?" + many[:60_000]), (200, 400, 414), seconds=20)
    expect("series without a match", node.ask("GET", "/api/v1/series"), 400)
    leave(node, base)
    node.is_well("queries", rss_mib=600)


def grow(text, times):
    for _ in range(times):
        text = f'label_replace({text}, "x", "$1$1", "x", "(.*)")' if "label_replace" in text else \
            f'label_replace({text}, "x", "$1$1$1$1$1$1$1$1", "i", "(.*)")'
    return text


def join(text, times):
    for i in range(times):
        text = f'label_join({text}, "x", "", "x", "x", "i", "x")'
    return text


class Peak(threading.Thread):
    """Watches a node's memory."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.most, self.done = node, node.rss(), threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(0.05):
            self.most = max(self.most, self.node.rss())

    def end(self):
        self.done.set()
        self.join()
        return self.most


def leave(node, base):
    """200 dear queries whose clients leave: the CPU is idle a second later."""
    text = urllib.parse.urlencode({"query": 'sum by (job) (max_over_time({__name__=~".+"}[15m:1s]))',
                                   "start": time.time() - 10_000, "end": time.time(), "step": "1"}).encode()
    request = (b"POST /api/v1/query_range HTTP/1.1\r\nHost: x\r\nX-Scope-OrgID: heavy\r\n"
               b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % len(text)) + text
    peak, open_ = Peak(node), []
    for _ in range(200):
        s = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        s.sendall(request)
        open_.append(s)
    before = node.cpu()
    time.sleep(2)
    busy = (node.cpu() - before) / 2
    expect("beside 200 dear queries: another tenant's", node.query("1", "small"), 200, seconds=30)
    [s.close() for s in open_]
    time.sleep(1.5)
    before = node.cpu()
    time.sleep(1)
    after = node.cpu() - before
    print(f"200 dear queries: {busy:.2f} CPUs while they ran, {after:.2f} CPUs 1.5 s after their clients left, "
          f"peak {(peak.end() - base) / MIB:+.0f} MiB, then {(node.rss() - base) / MIB:+.0f} MiB", flush=True)
    check("queries end when their clients leave", after < 0.25, after)


# --- the process ----------------------------------------------------------------------------------------------------

@part
def stopping(node):
    """SIGTERM under load: what was acknowledged is there afterwards, and the exit code is 0."""
    acknowledged, refused, stop = [], [], threading.Event()

    def write(worker):
        i = 0
        while not stop.is_set():
            i += 1
            try:
                answer = node.push(series({"__name__": "stop", "w": str(worker), "i": str(i)}, sample(i, now_ms())),
                                   tenant="stopping", within=20)
            except (OSError, http.client.HTTPException):
                # Refused or reset before an answer: the sender keeps what it has and tries again.
                return
            if answer.code == 204:
                acknowledged.append((worker, i))
            elif answer.code != 503:
                refused.append(str(answer))

    threads = [threading.Thread(target=write, args=(w,)) for w in range(20)]
    [t.start() for t in threads]
    time.sleep(1.5)
    began = time.time()
    code = node.stop()
    took = time.time() - began
    stop.set()
    [t.join() for t in threads]
    print(f"stopped in {took:.2f} s after {len(acknowledged)} acknowledged writes of 20 senders", flush=True)
    check("stopped in good order", code == 0, code)
    check("a stop answers nothing wrong", not refused, refused[:3])
    node.start()
    found = node.query('stop', "stopping").json()["data"]["result"]
    have = {(int(s["metric"]["w"]), int(s["metric"]["i"])) for s in found}
    missing = [a for a in acknowledged if a not in have]
    check("everything acknowledged is there after the start", not missing, (len(missing), missing[:5]))


@part
def twice(node):
    def fails(name, args, text, env=None, within=5):
        began = time.time()
        try:
            run = subprocess.run([node.binary, *args], capture_output=True, text=True, timeout=within,
                                 env={**os.environ, **(env or {})})
        except subprocess.TimeoutExpired:
            return check(f"start: {name}", False, "the node runs")
        said = run.stdout + run.stderr
        check(f"start: {name}", run.returncode not in (0, 101) and "panic" not in said and re.search(text, said),
              f"exit {run.returncode} after {time.time() - began:.1f} s: {said}")

    other = tempfile.mkdtemp(dir=ROOM)
    spare = lambda: f"127.0.0.1:{free_port()}"
    fails("the same directory twice", ["--data-dir", node.data, "--http-listen", spare(), "--grpc-listen", spare()],
          "(in use|another|locked|already)")
    fails("HTTP port in use", ["--data-dir", other, "--http-listen", f"127.0.0.1:{node.port}", "--grpc-listen", spare()],
          f"127.0.0.1:{node.port}.*(in use)")
    fails("data directory is a file", ["--data-dir", "/proc/version", "--http-listen", spare(), "--grpc-listen", spare()],
          "/proc/version")
    fails("data directory cannot be made", ["--data-dir", "/proc/engram", "--http-listen", spare(), "--grpc-listen", spare()],
          "/proc/engram")
    file = os.path.join(ROOM, "bad.yaml")
    for name, text, said in (
        ("unknown key", "nonsense: 1\n", "nonsense"), ("not YAML", "a: [\n", "bad.yaml"),
        ("a list", "- a\n- b\n", "bad.yaml"), ("binary", "\x00\x01\x02", "bad.yaml"),
        ("deep YAML", "a: " + "[" * 5000, "bad.yaml"),
        ("aliases that explode", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)), "bad.yaml"),
    ):
        with open(file, "w") as f:
            f.write(text)
        fails(f"file: {name}", ["--config", file, "--data-dir", other, "--http-listen", spare()], said)
    fails("file is missing", ["--config", "/nonexistent/x.yaml"], "/nonexistent/x.yaml")
    fails("file is a directory", ["--config", "/tmp"], "/tmp")
    for option, value in (("query-timeout", "soon"), ("query-timeout", "-1s"), ("query-timeout", "1e300y"),
                          ("partitions", "0"), ("partitions", "-1"), ("partitions", "many"), ("partitions", "99999999999"),
                          ("http-listen", "nowhere"), ("http-listen", "127.0.0.1:99999"), ("log-level", "loud"),
                          ("write-body-bytes-max", "10 apples"), ("promql-experimental", "perhaps"),
                          ("limits-ingestion-rate", "-5"), ("log-segment-bytes-max", "0")):
        base = ["--data-dir", other, "--grpc-listen", spare()]
        base += [] if option == "http-listen" else ["--http-listen", spare()]
        fails(f"flag {option}={value}", [f"--{option}={value}", *base], option.replace("-", "[-._]"))
        name = "ENGRAM_" + option.upper().replace("-", "_")
        fails(f"variable {name}={value}", base, f"(?i){option.replace('-', '[-._]')}", {name: value})
    fails("unknown flag", ["--nonsense"], "nonsense")


@part
def disk(node):
    """A disk of 192 MiB that fills: nothing acknowledged is lost, and the node comes back when there is room."""
    place = tempfile.mkdtemp(dir=ROOM)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", place],
                                           capture_output=True).returncode:
        print("SKIPPED: the full disk, it needs the right to mount", flush=True)
        return
    small = Node(node.binary, os.path.join(place, "data"), ["--log-segment-bytes-max=4MiB"])
    try:
        small.start()
        acknowledged, codes = [], {}
        full(small, acknowledged, codes, place)
    finally:
        if small.process and small.process.poll() is None:
            small.stop()
        subprocess.run(["umount", "-l", place])


def full(small, acknowledged, codes, place):
    ballast = os.path.join(place, "ballast")
    with open(ballast, "wb") as f:
        left = shutil.disk_usage(place).free - 24 * MIB
        f.write(bytes(max(left, 0)))
    rng, last, began = random.Random(5), "", time.time()
    for i in range(4000):
        labels = {"__name__": "full", "i": str(i)}
        message = b"".join(series({**labels, "k": str(k)}, *(sample(rng.random(), now_ms() + j) for j in range(50)))
                           for k in range(200))
        try:
            answer = small.push(message, tenant="disk", within=30)
            code, last = answer.code, str(answer)
        except (OSError, http.client.HTTPException) as error:
            code = type(error).__name__
        codes[code] = codes.get(code, 0) + 1
        if code == 204:
            acknowledged.append(i)
        if len(codes) > 1 and code != 204 and codes[code] > 5:
            break
    alive = small.process.poll() is None
    print(f"full disk: {codes} in {time.time() - began:.1f} s, alive: {alive}, exit {small.process.poll()}, last: {last}", flush=True)
    check("full disk: the log says so, once", small.log_text().count("the disk is full") == 1, small.log_text()[-1500:])
    check("full disk: refused as something to retry", set(codes) == {204, 503} and "disk" in last, (codes, last))
    check("full disk: no panic", "panic" not in small.log_text(), small.log_text()[-1500:])
    if alive:
        expect("full disk: queries go on", small.query("count(full)", "disk"), 200)
    os.remove(ballast)
    came_back = False
    by = time.time() + 20
    while alive and time.time() < by and not came_back:
        try:
            came_back = small.push(series({"__name__": "after"}, sample(1, now_ms())), tenant="disk").code == 204
        except OSError:
            break
        time.sleep(0.2)
    print(f"full disk: writes by itself after {20 - (by - time.time()):.1f} s: {came_back}", flush=True)
    if small.process.poll() is None:
        check("full disk: writes again when there is room", came_back, small.log_text()[-1500:])
        check("full disk: stops in good order", small.stop() == 0)
    small.start()
    found = small.query("count by (i) (full)", "disk").json()["data"]["result"]
    whole = {int(s["metric"]["i"]) for s in found if s["value"][1] == "200"}
    missing = [i for i in acknowledged if i not in whole]
    check("full disk: nothing acknowledged is lost", not missing, (len(missing), missing[:5]))
    check("full disk: and it writes", small.push(series({"__name__": "a"}, sample(1, now_ms())), tenant="disk").code == 204)
    small.stop()


def main():
    global ROOM, QUICK, VERBOSE
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--engram", required=True)
    arguments.add_argument("--quick", action="store_true", help="less data and fewer tenants, as for a debug build")
    arguments.add_argument("--verbose", action="store_true")
    arguments.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    options = arguments.parse_args()
    QUICK, VERBOSE = options.quick, options.verbose
    ROOM = tempfile.mkdtemp(prefix="engram-abuse-")
    node = Node(os.path.abspath(options.engram), os.path.join(ROOM, "data"))
    try:
        node.start()
        for name in options.parts or PARTS:
            began, before = time.time(), len(FAILED)
            try:
                PARTS[name](node)
            except Exception as error:  # a part that breaks must not hide the others
                check(f"{name}: ran to its end", False, repr(error))
            if node.process.poll() is not None:
                check(f"{name}: the node lives", False, f"exit {node.process.poll()}: {node.log_text()[-1500:]}")
                node.start()
            node.is_well(name, rss_mib=600)
            print(f"part {name}: {time.time() - began:.1f} s, {len(FAILED) - before} failed, "
                  f"{node.rss() / MIB:.0f} MiB", flush=True)
        check("the node stops with 0", node.stop() == 0)
    finally:
        if node.process and node.process.poll() is None:
            node.process.kill()
        shutil.rmtree(ROOM, ignore_errors=True)
    print(f"e2e-abuse: {len(PASSED)} passed, {len(FAILED)} failed")
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
