"""Engram and Prometheus, side by side, asked the same.

A real Prometheus scrapes itself, a node exporter and Engram, and remote-writes every sample to Engram. Then scraping
ends (so staleness markers are written too), the queue drains, and each question below is put to both at the same
moments: same result type, same label sets, same times, same values to 1 part in 10^9. A second Prometheus that has
nothing but remote read of Engram is asked as well: its answers are Engram's. Prometheus' own blocks, as a snapshot of it
holds them, are imported for another tenant: its answers are Prometheus'. Between
the two Engram brings all it has to blocks, promtool reads them, a Prometheus that has nothing but a copy of them answers
as Engram does, and everything is asked again. Blocks that promtool makes of text are imported and asked, too.

Engram speaks Prometheus 3, Debian's is Prometheus 2; where the two are known to differ nothing is asked. So moments
are chosen off every scrape (3 leaves out a sample exactly at the left end of a window), no window reaches back to
the birth of a counter (3 extrapolates to zero otherwise), and no binary operator stands where 2 forgot to drop a name.
"""

import argparse
import atexit
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

# Every expression is asked as an instant query at three moments and as a range query with two steps.
EXPRESSIONS = """
up
up == 1
up{job="node"}
{__name__=~"node_load.*"}
{job="prometheus",__name__!~"prometheus_.*|net_.*"}
node_cpu_seconds_total{mode=~"idle|user",cpu="0"}
node_cpu_seconds_total{mode!~"idle|iowait|.*irq"}
sum(up)
sum by (job) (up)
count by (job) ({job!=""})
count without (cpu, mode) (node_cpu_seconds_total)
avg by (mode) (node_cpu_seconds_total)
min(node_memory_MemFree_bytes) + max(node_memory_MemTotal_bytes)
group by (job) (process_open_fds)
stddev by (mode) (node_cpu_seconds_total)
stdvar(node_load1)
topk(3, sum by (mode) (node_cpu_seconds_total))
bottomk(2, sum by (mode) (node_cpu_seconds_total))
quantile(0.75, node_cpu_seconds_total)
quantile by (mode) (0.5, node_cpu_seconds_total)
count_values("value", up)
rate(node_cpu_seconds_total[20s])
sum by (mode) (rate(node_cpu_seconds_total[15s]))
irate(node_cpu_seconds_total{mode="idle"}[10s])
increase(prometheus_http_requests_total{handler="/metrics"}[20s])
sum(increase(prometheus_tsdb_head_samples_appended_total[15s]))
delta(node_memory_MemFree_bytes[20s])
idelta(node_memory_MemFree_bytes[10s])
deriv(node_memory_MemAvailable_bytes[20s])
predict_linear(node_memory_MemAvailable_bytes[20s], 60)
changes(process_resident_memory_bytes[20s])
resets(node_cpu_seconds_total[20s])
avg_over_time(node_load1[20s])
min_over_time(node_memory_MemFree_bytes[20s])
max_over_time(node_memory_MemFree_bytes[20s])
sum_over_time(up[20s])
count_over_time(up[20s])
stddev_over_time(node_memory_MemFree_bytes[20s])
quantile_over_time(0.9, node_memory_MemFree_bytes[20s])
last_over_time(process_cpu_seconds_total[10s])
present_over_time(up[5s])
absent(up{job="nobody"})
absent(up)
absent_over_time(up{job="nobody"}[5s])
histogram_quantile(0.9, prometheus_tsdb_compaction_chunk_size_bytes_bucket)
histogram_quantile(0.5, sum by (le, handler) (rate(prometheus_http_request_duration_seconds_bucket{handler="/metrics"}[20s])))
sum by (handler) (rate(prometheus_http_request_duration_seconds_sum{handler="/metrics"}[20s])) / sum by (handler) (rate(prometheus_http_request_duration_seconds_count{handler="/metrics"}[20s]))
100 * (1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[20s])))
node_memory_MemFree_bytes / node_memory_MemTotal_bytes
node_memory_MemTotal_bytes - on (instance, job) node_memory_MemFree_bytes
node_cpu_seconds_total / ignoring (cpu, mode) group_left () node_load1
node_cpu_seconds_total * on (instance) group_left (version) node_exporter_build_info
up and on (job) process_open_fds > 0
up unless on (job) node_load1
up{job="node"} or up{job="prometheus"}
node_load1 > bool 0.1
process_open_fds >= 5
process_open_fds % 7 ^ 2
-node_load1 + 2 * 3 - 1
sum(node_load1) atan2 sum(node_load5)
abs(delta(node_memory_MemFree_bytes[20s]))
ceil(node_load1) + floor(node_load5) + round(node_load15, 0.1)
sqrt(process_open_fds) + ln(process_open_fds) + log2(process_open_fds) + log10(process_open_fds) + exp(node_load1)
sgn(node_load1 - node_load5)
clamp(node_load1, 0.1, 0.2)
clamp_min(node_load1, 0.5) + clamp_max(node_load5, 0.5)
sin(node_load1) + cos(node_load1) + rad(node_load1)
sort(node_load1 or node_load5 or node_load15)
sort_desc(sum by (mode) (node_cpu_seconds_total))
label_replace(up, "host", "$1", "instance", "(.*):.*")
label_join(up, "both", "-", "job", "instance")
timestamp(up)
time()
time() - process_start_time_seconds
vector(1.5)
scalar(node_load1{job="node"})
scalar(up)
hour() + minute() + day_of_week() + month() + year()
days_in_month(process_start_time_seconds)
pi() * 2
1 + 2 * 3 ^ 2
1e3 > bool 0x10
NaN
Inf
-Inf
0 / 0
up offset 10s
rate(node_cpu_seconds_total{mode="idle"}[10s] offset 5s)
up offset -5s
node_load1 @ end()
node_load1 @ start()
max_over_time(sum(rate(node_cpu_seconds_total[10s]))[15s:3s])
avg_over_time(rate(prometheus_http_requests_total{handler="/metrics"}[10s])[12s:2s] offset 2s)
min_over_time(node_load1[10s:])
sum by (job) (count_over_time(node_load1[10s]))
scrape_duration_seconds
scrape_samples_scraped
""".strip().splitlines()

# Instant only: raw samples, and a string.
INSTANT_ONLY = [
    'up[30s]', '{job="node"}[10s]', 'node_load1[20s] offset 5s', 'process_resident_memory_bytes[15s:5s]',
    'node_load1[20s] @ end()', '"a string"', 'rate(node_cpu_seconds_total[20s])[10s:2s]',
]

# Values computed by another order of additions in the two servers: equal to fewer digits.
LOOSE = {'stddev', 'stdvar', 'deriv', 'predict_linear'}

# Both must refuse.
WRONG = ['up{', 'sum(', 'rate(up)', 'up + on (', 'foo(', 'up[5m] + 1', '{}', 'topk(up)', 'up offset', 'up{a=~"("}']


class Failed(Exception):
    """Why an answer is no answer, or why the run cannot go on."""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Processes:
    """Everything started here; ends with this script whatever happens."""

    def __init__(self, folder):
        self.folder, self.running = folder, {}
        atexit.register(self.stop)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def start(self, name, *command):
        log = open(os.path.join(self.folder, name + '.log'), 'wb')
        self.running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self):
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running = {}

    def wait_for(self, name, url, seconds=60):
        end = time.time() + seconds
        while time.time() < end:
            if self.running[name].poll() is not None:
                raise Failed(f'{name} ended by itself:\n{self.tail(name)}')
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.1)
        raise Failed(f'{name} is not ready after {seconds} s:\n{self.tail(name)}')

    def tail(self, name):
        with open(os.path.join(self.folder, name + '.log'), errors='replace') as log:
            return ''.join(log.readlines()[-15:])


class Tenant(str):
    """A server's address, and whose data is asked for there."""

    def __new__(cls, server, tenant):
        self = super().__new__(cls, server)
        self.tenant = tenant
        return self


def ask(server, path, params, post=False):
    """The data of a successful answer, or Failed with the error type."""
    query = urllib.parse.urlencode(params, doseq=True)
    url = f'{server}/api/v1/{path}'
    request = urllib.request.Request(url, data=query.encode()) if post else urllib.request.Request(url + '?' + query)
    if isinstance(server, Tenant):
        request.add_header('X-Scope-OrgID', server.tenant)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors='replace')
        try:
            raise Failed(f"{error.code} {json.loads(text)['errorType']}: {json.loads(text)['error'][:150]}") from None
        except (ValueError, KeyError):
            raise Failed(f'{error.code} without a Prometheus error: {text[:150]}') from None
    except (OSError, ValueError) as error:
        raise Failed(f'no answer: {error}') from None
    if body.get('status') != 'success':
        raise Failed(f'status {body.get("status")}')
    return body['data']


def near(a, b, tolerance):
    a, b = float(a), float(b)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= tolerance * max(abs(a), abs(b))


def points_differ(want, have, tolerance):
    if [p[0] for p in want] != [p[0] for p in have]:
        wanted, got = {p[0] for p in want}, {p[0] for p in have}
        return f'times differ: {len(want)} and {len(have)}; only Prometheus {sorted(wanted - got)[:3]}, only Engram {sorted(got - wanted)[:3]}'
    for (at, a), (_, b) in zip(want, have):
        if not near(a, b, tolerance):
            return f'at {at}: Prometheus {a}, Engram {b}'
    return None


def differ(want, have, tolerance, ordered):
    """What differs between two results of the query API, or None."""
    if want['resultType'] != have['resultType']:
        return f"type {want['resultType']} and {have['resultType']}"
    kind, want, have = want['resultType'], want['result'], have['result']
    if kind == 'string':
        return None if want == have else f'{want} and {have}'
    if kind == 'scalar':
        return points_differ([want], [have], tolerance)
    key = lambda series: json.dumps(series['metric'], sort_keys=True)
    order = [[key(s) for s in side] for side in (want, have)]
    if ordered and order[0] != order[1]:
        return f'another order: {order[0][:3]} and {order[1][:3]}'
    for side in order:
        if len(set(side)) != len(side):
            return 'a label set is answered twice'
    want, have = ({key(s): s for s in side} for side in (want, have))
    if want.keys() != have.keys():
        return f'only Prometheus: {sorted(want.keys() - have.keys())[:2]}; only Engram: {sorted(have.keys() - want.keys())[:2]}'
    for name in want:
        rows = [[side[name]['value']] if kind == 'vector' else side[name]['values'] for side in (want, have)]
        reason = points_differ(*rows, tolerance)
        if reason:
            return f'{name} {reason}'
    return None


class Comparison:
    """Counts what agrees and tells what does not."""

    def __init__(self, prometheus, engram):
        self.prometheus, self.engram = prometheus, engram
        self.passed, self.failed, self.full, self.empty = 0, 0, 0, 0

    def check(self, name, reason):
        if reason is None:
            self.passed += 1
        else:
            self.failed += 1
            print(f'FAILED {name}\n       {reason}', flush=True)

    def both(self, name, path, params, compare, post=False):
        try:
            want = ask(self.prometheus, path, params)
        except Failed as error:
            return self.check(name, f'Prometheus itself: {error}')
        try:
            have = ask(self.engram, path, params, post)
        except Failed as error:
            return self.check(name, f'Engram: {error}')
        if want['result'] if isinstance(want, dict) else want:
            self.full += 1
        else:
            self.empty += 1
        return self.check(name, compare(want, have))

    def query(self, text, path, **params):
        words = set(re.findall(r'[a-z_0-9]+', text))
        tolerance = 1e-6 if words & LOOSE else 1e-9
        ordered = text.startswith('sort') and path == 'query'
        told = ', '.join(f'{k}={v}' for k, v in params.items())
        self.both(f'{path} {text}  ({told})', path, {'query': text, **params},
                  lambda want, have: differ(want, have, tolerance, ordered), post=path == 'query_range')

    def listing(self, path, **params):
        same = lambda want, have: None if want == have else (
            f'only Prometheus: {[x for x in want if x not in have][:3]}; only Engram: {[x for x in have if x not in want][:3]}'
            f'; {len(want)} and {len(have)}')
        key = lambda row: json.dumps(row, sort_keys=True)
        self.both(f'{path} {params}', path, params, lambda want, have: same(sorted(want, key=key), sorted(have, key=key)))

    def refused(self, text, at):
        for server, who in ((self.prometheus, 'Prometheus'), (self.engram, 'Engram')):
            try:
                ask(server, 'query', {'query': text, 'time': at})
                self.check(f'refused: {text}', f'{who} accepted it')
                return
            except Failed as error:
                if not str(error).startswith('400 bad_data'):
                    self.check(f'refused: {text}', f'{who}: {error}')
                    return
        self.check(f'refused: {text}', None)

    def promtool(self, *args, drop=r' @\[.*?\]'):
        """One promtool query, of both servers: same lines."""
        def run(server):
            words = [server if word == 'SERVER' else word for word in args]
            done = subprocess.run(['promtool', *words], capture_output=True, text=True, timeout=30)
            return done.returncode, sorted(re.sub(drop, '', done.stdout).split('\n')), done.stderr.strip()
        want, have = run(self.prometheus), run(self.engram)
        reason = None
        if have[0] != 0:
            reason = f'promtool ends with {have[0]}: {have[2][:200]}'
        elif want[1] != have[1]:
            reason = f'Prometheus {want[1][:4]}, Engram {have[1][:4]}'
        self.check('promtool ' + ' '.join(args), reason)


def config(folder, scrapes, push, targets=True):
    """Prometheus's configuration. A job that loses its targets marks their series stale; one that goes does not."""
    jobs = ''.join(f"  - job_name: {name}\n    static_configs: [{{targets: {[address] if targets else []}}}]\n" for name, address in scrapes)
    path = os.path.join(folder, 'prometheus.yml')
    with open(path, 'w') as file:
        file.write('global: {scrape_interval: 1s, scrape_timeout: 1s}\n'
                   f'scrape_configs:\n{jobs}'
                   f'remote_write:\n  - url: {push}\n    queue_config: {{batch_send_deadline: 1s}}\n'
                   '    metadata_config: {send_interval: 5s}\n')
    return path


def gauge(server, name):
    """The largest value of one of a server's own metrics."""
    with urllib.request.urlopen(server + '/metrics', timeout=10) as answer:
        rows = [line.split() for line in answer.read().decode().splitlines() if re.match(name + r'[{ ]', line)]
    return max((float(row[-1]) for row in rows), default=math.nan)


def drain(prometheus, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        newest = gauge(prometheus, 'prometheus_remote_storage_highest_timestamp_in_seconds')
        sent = gauge(prometheus, 'prometheus_remote_storage_queue_highest_sent_timestamp_seconds')
        pending = gauge(prometheus, 'prometheus_remote_storage_samples_pending')
        if sent >= newest and pending == 0:
            return
        time.sleep(0.2)
    raise Failed(f'the remote-write queue did not drain: newest {newest}, sent {sent}, pending {pending}')


def wait_until_stale(prometheus, seconds=30):
    """The moment from which on no series is there any more."""
    end = time.time() + seconds
    while time.time() < end:
        now = time.time()
        if not ask(prometheus, 'query', {'query': '{__name__=~".+"}', 'time': now})['result']:
            return now
        time.sleep(0.5)
    raise Failed('the series of targets that are gone were not marked stale')


def quiet_fraction(prometheus, at):
    """A fraction of a second at which nothing was scraped."""
    rows = ask(prometheus, 'query', {'query': 'up[40s]', 'time': at})['result']
    taken = {round(float(t) * 1000) % 1000 for row in rows for t, _ in row['values']}
    gap = lambda ms: min((min(abs(ms - t), 1000 - abs(ms - t)) for t in taken), default=1000)
    return max(range(1, 1000), key=gap) / 1000


def same_metadata(want, have):
    common = want.keys() & have.keys()
    if len(common) < 0.9 * len(want):
        return f'{len(common)} of {len(want)} metrics have metadata; missing e.g. {sorted(want.keys() - have.keys())[:3]}'
    for name in sorted(common):
        told = {(entry['type'], entry['help']) for entry in want[name]}
        if not {(entry['type'], entry['help']) for entry in have[name]} & told:
            return f'{name}: {want[name]} and {have[name]}'
    return None


def compare_all(c, last, gone):
    """Every question: at two moments before `last`, when all was scraped, and at one after all series were `gone`."""
    fraction = quiet_fraction(c.prometheus, last)
    moments = [f'{int(last) - back + fraction:.3f}' for back in (3, 11)] + [f'{int(gone) + 1 + fraction:.3f}']
    start, end = f'{int(last) - 12 + fraction:.3f}', f'{int(gone) + 2 + fraction:.3f}'
    for text in EXPRESSIONS:
        for moment in moments:
            c.query(text, 'query', time=moment)
        for step in ('1s', '7'):
            c.query(text, 'query_range', start=start, end=end, step=step)
    for text in INSTANT_ONLY:
        for moment in moments[:2]:
            c.query(text, 'query', time=moment)
    for text in WRONG:
        c.refused(text, moments[0])
    span = {'start': start, 'end': end}
    c.listing('labels', **span)
    c.listing('labels', **span, **{'match[]': 'up'})
    for label in ('job', 'instance', '__name__', 'mode', 'le', 'nobody'):
        c.listing(f'label/{label}/values', **span)
    c.listing('label/cpu/values', **span, **{'match[]': ['node_cpu_seconds_total{mode="idle"}']})
    c.listing('series', **span, **{'match[]': ['up', 'node_load1']})
    c.listing('series', **span, **{'match[]': ['{__name__=~"node_cpu.*",mode!="idle"}']})
    c.listing('series', **span, **{'match[]': ['nobody']})
    at = moments[0]
    c.promtool('query', 'instant', 'SERVER', f'sum by (job) (up @ {at})')
    c.promtool('query', 'range', '--start', str(int(last) - 20), '--end', str(int(last) - 4), '--step', '4s', 'SERVER', 'node_load1', drop='$^')
    c.promtool('query', 'series', '--match', 'up', '--start', str(int(last) - 20), '--end', str(int(last)), 'SERVER')
    c.promtool('query', 'labels', '--start', str(int(last) - 20), '--end', str(int(last)), 'SERVER', 'job')


def compare_once(c, asked, what, last, gone):
    """Every expression at one moment and over one range, of two other servers than those of `c`."""
    fraction = quiet_fraction(c.prometheus, last)
    moment = f'{int(last) - 3 + fraction:.3f}'
    start, end = f'{int(last) - 12 + fraction:.3f}', f'{int(gone) + 2 + fraction:.3f}'
    for text in EXPRESSIONS:
        asked.query(text, 'query', time=moment)
        asked.query(text, 'query_range', start=start, end=end, step='3s')
    take(c, asked, what)


def take(c, asked, what):
    """Counts what was asked of others than `c`'s servers. Empty answers are easy to agree with."""
    print(f'e2e: {what} {asked.full} answers held something, {asked.empty} were empty', flush=True)
    c.check(f'answers {what}', None if asked.full > 2 * asked.empty else f'{asked.empty} are empty')
    c.passed, c.failed = c.passed + asked.passed, c.failed + asked.failed


def on_blocks(processes, name, folder, blocks, port):
    """A Prometheus that has nothing but a copy of these blocks."""
    path, data = os.path.join(folder, name + '.yml'), os.path.join(folder, name)
    open(path, 'w').close()
    shutil.copytree(blocks, data)
    processes.start(name, 'prometheus', f'--config.file={path}', f'--storage.tsdb.path={data}',
                    '--storage.tsdb.retention.time=100y', f'--web.listen-address=127.0.0.1:{port}')
    server = f'http://127.0.0.1:{port}'
    processes.wait_for(name, server + '/-/ready')
    return server


def compare_remote_read(c, processes, folder, engram, port, last, gone):
    """A Prometheus with no samples of its own that reads Engram's: its answers are Engram's."""
    path = os.path.join(folder, 'reader.yml')
    with open(path, 'w') as file:
        file.write(f'remote_read:\n  - url: {engram}/api/v1/read\n    read_recent: true\n')
    reader = f'http://127.0.0.1:{port}'
    processes.start('reader', 'prometheus', f'--config.file={path}', f'--storage.tsdb.path={folder}/reader',
                    f'--web.listen-address=127.0.0.1:{port}')
    processes.wait_for('reader', reader + '/-/ready')
    compare_once(c, Comparison(reader, engram), 'by remote read', last, gone)


def blocks(c, folder):
    """Brings everything to blocks; Prometheus' own tool must read them, with as many samples as were flushed."""
    flushed = ask(c.engram, 'admin/flush', {'wait': 'true'}, post=True)
    root = os.path.join(folder, 'engram', 'blocks', 'anonymous')
    # The empty `wal` beside the blocks is there because promtool looks in it for newer samples.
    names = sorted(set(os.listdir(root)) - {'wal'}) if os.path.isdir(root) else []
    same = sorted(flushed['blocks']) == names and names
    c.check('flush', None if same and flushed['done'] else f'told {flushed["blocks"]}, on disk {names}')
    copy = os.path.join(folder, 'promtool')
    shutil.copytree(root, copy)

    def promtool(*words):
        done = subprocess.run(['promtool', 'tsdb', *words], capture_output=True, text=True, timeout=120, cwd=copy)
        reason = None if done.returncode == 0 else f'promtool ends with {done.returncode}: {done.stderr[:300]}'
        return done.stdout, reason
    told, reason = promtool('list', '.')
    missing = [name for name in names if name not in told]
    c.check('promtool tsdb list', reason or (f'not listed: {missing}' if missing else None))
    for name in names:
        _, reason = promtool('analyze', '.', name)
        c.check(f'promtool tsdb analyze {name}', reason)
    told, reason = promtool('dump', '.')
    lines = sum(line.startswith('{') for line in told.splitlines())
    wrong = None if lines == flushed['samples'] else f'{lines} samples, flushed were {flushed["samples"]}'
    c.check('promtool tsdb dump', reason or wrong)
    print(f'e2e: promtool read {len(names)} blocks with {lines} samples', flush=True)


def compare_imported(c, args, folder, engram, last, gone):
    """Prometheus' own blocks, by `engram import`, for a tenant that has nothing else: its answers are Prometheus'."""
    name = ask(c.prometheus, 'admin/tsdb/snapshot', {}, post=True)['name']
    blocks = os.path.join(folder, 'prometheus', 'snapshots', name)
    command = [args.engram, 'import', '--url', engram, '--tenant', 'imported', blocks]
    for words in ('imported (', ' there already'):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        good = done.returncode == 0 and re.search(r'[1-9]\d*' + re.escape(' ' + words.strip()), done.stdout)
        c.check('engram import' + words, None if good else f'{done.returncode}: {done.stdout}{done.stderr}')
    compare_once(c, Comparison(c.prometheus, Tenant(engram, 'imported')), 'of imported blocks', last, gone)
    verified = subprocess.run([args.engram, 'verify', '--deep', '--url', engram], capture_output=True, text=True, timeout=120)
    c.check('engram verify', None if verified.returncode == 0 else verified.stdout + verified.stderr)


# What is asked of blocks that promtool made of text: a sample a minute, and no question on a minute.
CREATED = """
made_total
made_total{code=~"2.*"}
sum by (code) (rate(made_total[5m]))
increase(made_total[30m])
made_celsius
avg_over_time(made_celsius[10m])
quantile(0.5, made_celsius)
count_over_time({__name__=~"made_.*"}[20m])
max_over_time(sum(rate(made_total[5m]))[30m:2m])
histogram_quantile(0.9, sum by (le) (rate(made_seconds_bucket[10m])))
""".strip().splitlines()


def openmetrics(path, first, minutes):
    """Counters with a reset, gauges and a histogram of `minutes` samples each, as text."""
    rows = ['# TYPE made counter']
    for code in ('200', '204', '500'):
        rows += [f'made_total{{code="{code}"}} {(m % 200) * int(code)} {first + 60 * m}' for m in range(minutes)]
    rows += ['# TYPE made_celsius gauge']
    for room in ('a', 'b'):
        rows += [f'made_celsius{{room="{room}"}} {20 + math.sin(m / 10) * len(room + str(m))} {first + 60 * m}' for m in range(minutes)]
    rows += ['# TYPE made_seconds histogram']
    for le, part in (('0.1', 1), ('1', 3), ('+Inf', 4)):
        rows += [f'made_seconds_bucket{{le="{le}"}} {m * part} {first + 60 * m}' for m in range(minutes)]
    with open(path, 'w') as file:
        file.write('\n'.join(rows + ['# EOF', '']))


def compare_created(c, args, processes, folder, engram, port):
    """Blocks that promtool makes of text: imported, Engram answers of them what a Prometheus on them answers."""
    text, made = os.path.join(folder, 'made.om'), os.path.join(folder, 'made')
    first, minutes = int(time.time()) // 7200 * 7200 - 10 * 7200, 500
    openmetrics(text, first, minutes)
    done = subprocess.run(['promtool', 'tsdb', 'create-blocks-from', 'openmetrics', text, made], capture_output=True, text=True, timeout=120)
    c.check('promtool create-blocks-from', None if done.returncode == 0 else done.stderr[:300])
    done = subprocess.run([args.engram, 'import', '--url', engram, '--tenant', 'made', made], capture_output=True, text=True, timeout=120)
    c.check('engram import of them', None if done.returncode == 0 else f'{done.stdout}{done.stderr}')
    asked = Comparison(on_blocks(processes, 'on-made', folder, made, port), Tenant(engram, 'made'))
    for query in CREATED:
        for minute in (90, 250, 499):
            asked.query(query, 'query', time=f'{first + 60 * minute + 17.3:.3f}')
        asked.query(query, 'query_range', start=f'{first + 3617.3:.3f}', end=f'{first + 60 * minutes + 617.3:.3f}', step='73s')
    take(c, asked, "of promtool's blocks")


def run(args, folder):
    e_http, e_grpc, p_port, n_port, r_port, b_port, m_port = free_ports(7)
    engram, prometheus = f'http://127.0.0.1:{e_http}', f'http://127.0.0.1:{p_port}'
    push = engram + '/api/v1/push'
    processes = Processes(folder)
    processes.start('engram', args.engram, '--data-dir', os.path.join(folder, 'engram'),
                    '--http-listen', f'127.0.0.1:{e_http}', '--grpc-listen', f'127.0.0.1:{e_grpc}')
    processes.wait_for('engram', engram + '/-/ready')
    processes.start('node', 'prometheus-node-exporter', f'--web.listen-address=127.0.0.1:{n_port}')
    scrapes = [('prometheus', f'127.0.0.1:{p_port}'), ('node', f'127.0.0.1:{n_port}'), ('engram', f'127.0.0.1:{e_http}')]
    path = config(folder, scrapes, push)
    processes.start('prometheus', 'prometheus', f'--config.file={path}', f'--storage.tsdb.path={folder}/prometheus',
                    f'--web.listen-address=127.0.0.1:{p_port}', '--web.enable-lifecycle', '--web.enable-admin-api')
    processes.wait_for('prometheus', prometheus + '/-/ready')
    print(f'e2e: scraping for {args.seconds} s', flush=True)
    time.sleep(args.seconds)
    metadata = ask(prometheus, 'metadata', {})
    time.sleep(5.5)  # one more turn of sending metadata
    last = time.time()
    config(folder, scrapes, push, targets=False)
    urllib.request.urlopen(urllib.request.Request(prometheus + '/-/reload', method='POST'), timeout=30).close()
    gone = wait_until_stale(prometheus)
    drain(prometheus)
    c = Comparison(prometheus, engram)
    dropped = gauge(prometheus, 'prometheus_remote_storage_samples_failed_total')
    retried = gauge(prometheus, 'prometheus_remote_storage_samples_retried_total')
    c.check('remote write', None if dropped == 0 else f'Engram refused {dropped:.0f} samples:\n{processes.tail("prometheus")}')
    compare_all(c, last, gone)
    compare_remote_read(c, processes, folder, engram, r_port, last, gone)
    blocks(c, folder)
    compare_all(c, last, gone)  # the same, from blocks
    server = on_blocks(processes, 'on-blocks', folder, os.path.join(folder, 'engram', 'blocks', 'anonymous'), b_port)
    compare_once(c, Comparison(server, engram), 'of a Prometheus on our blocks', last, gone)
    compare_created(c, args, processes, folder, engram, m_port)
    compare_imported(c, args, folder, engram, last, gone)
    try:
        c.check('metadata', same_metadata(metadata, ask(engram, 'metadata', {})))
    except Failed as error:
        c.check('metadata', f'Engram: {error}')
    sent = gauge(prometheus, 'prometheus_remote_storage_samples_total')
    print(f'e2e: Prometheus sent {sent:.0f} samples, {retried:.0f} of them again; '
          f'{c.full} answers of it held something, {c.empty} were empty')
    # An empty answer is easy to agree with: after the end of all series it is right, elsewhere seldom.
    c.check('questions with an answer', None if c.full > 2 * c.empty else f'{c.empty} of {c.full + c.empty} are empty')
    for name, process in processes.running.items():
        if process.poll() is not None:
            c.check(f'{name} lives', f'ended by itself:\n{processes.tail(name)}')
    processes.stop()
    return c


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--engram', required=True, help='the binary')
    parser.add_argument('--seconds', type=int, default=45, help='how long to scrape')
    args = parser.parse_args()
    args.engram = os.path.abspath(args.engram)
    folder = tempfile.mkdtemp(prefix='engram-e2e-')
    passed, failed = 0, 1
    try:
        c = run(args, folder)
        passed, failed = c.passed, c.failed
    except Failed as error:
        print(f'FAILED {error}')
    if failed:
        print(f'e2e: logs and data are in {folder}')
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f'e2e: {passed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
