#!/usr/bin/env python3
"""CPU two servers take for the same queries: wall time on a shared machine says little, CPU seconds say more.

Both must hold the series `engram-chaos load` writes, and run on this machine. Usage:

    scripts/compare_queries.py URL PID URL PID [ROUNDS [SET]]

The first pair is Engram, the second Prometheus. Each query is asked of both in turn, after one round that is not
counted; the CPU is what /proc/PID/stat says before and after (all threads, garbage collection included). A range ends
with the newest sample of `up`.
"""
import json
import os
import sys
import time
import urllib.parse
import urllib.request

HOUR = 3600
# Name, query, range and step in seconds (0: instant), how often as many rounds. What each set is asked of, says
# scripts/compare_prometheus.
FLEET = [
    ("instant: one series", 'node_load1{instance="@I"}', 0, 0, 50),
    ("instant: series by regex", 'node_load1{instance=~".*77:.*"}', 0, 0, 20),
    ("instant: sum of all up", "sum by (job) (up)", 0, 0, 20),
    ("instant: count by regex", 'count by (mode) (node_cpu_seconds_total{mode=~"i(dle|owait)"})', 0, 0, 1),
    (
        "instant: top 10 by rate",
        "topk(10, sum by (namespace, pod) (rate(container_cpu_usage_seconds_total[5m])))", 0, 0, 1,
    ),
    (
        "instant: join",
        "sum by (namespace) (container_memory_working_set_bytes * on (instance, pod) group_left () up)", 0, 0, 1,
    ),
    (
        "instant: p99 of 33k buckets",
        "histogram_quantile(0.99, sum by (le) (rate(http_request_duration_seconds_bucket[5m])))", 0, 0, 1,
    ),
    ("instant: regex over all names", 'count({__name__=~".*_total",instance=~".*1.*"})', 0, 0, 1),
    ("1 h, 15 s: requests by code", "sum by (code) (rate(http_requests_total[5m]))", HOUR, 15, 1),
    (
        "1 h, 15 s: error ratio",
        'sum(rate(http_requests_total{code=~"5.."}[5m])) / sum(rate(http_requests_total[5m]))', HOUR, 15, 1,
    ),
    (
        "1 h, 15 s: gauge by namespace",
        "max by (namespace) (avg_over_time(container_memory_working_set_bytes[10m]))", HOUR, 15, 1,
    ),
    ("1 h, 15 s: sum of 30k rates", "sum by (mode) (rate(node_cpu_seconds_total[5m]))", HOUR, 15, 1),
    ("1 h, 60 s: sum of 30k rates", "sum by (mode) (rate(node_cpu_seconds_total[5m]))", HOUR, 60, 1),
    (
        "1 h, 60 s: p99 of 33k buckets",
        "histogram_quantile(0.99, sum by (le, handler) (rate(http_request_duration_seconds_bucket[5m])))", HOUR, 60, 1,
    ),
    (
        "1 h, 60 s: join of 4.6k",
        "container_memory_working_set_bytes * on (instance, pod) group_left () up", HOUR, 60, 1,
    ),
    ("7 d, 60 s: requests by code", "sum by (code) (rate(http_requests_total[5m]))", 168 * HOUR, 60, 1),
]
LARGE = [
    (
        "instant: p99 of 73k buckets",
        "histogram_quantile(0.99, sum by (le, handler) (rate(http_request_duration_seconds_bucket[5m])))", 0, 0, 2,
    ),
    (
        "10 m, 15 s: p99 of 73k buckets",
        "histogram_quantile(0.99, sum by (le, handler) (rate(http_request_duration_seconds_bucket[5m])))", 600, 15, 1,
    ),
    (
        "instant: join of 10k",
        "container_memory_working_set_bytes * on (instance, pod) group_left () up", 0, 0, 4,
    ),
    (
        "instant: sum of a join of 10k",
        "sum by (namespace) (container_memory_working_set_bytes * on (instance, pod) group_left () up)", 0, 0, 4,
    ),
    ("10 m, 15 s: join of 10k", "container_memory_working_set_bytes * on (instance, pod) group_left () up", 600, 15, 1),
]
MILLION = [
    ("count by a regex on all names", 'count({__name__=~".+_total"})', 0, 0, 1),
    ("count by regexes on two labels", 'count({__name__=~".+_total",instance=~".*1.*"})', 0, 0, 1),
    ("count of all series", 'count({__name__=~".+"})', 0, 0, 1),
    ("one metric of 300k by a regex", 'sum by (mode) (node_cpu_seconds_total{mode=~"i(dle|owait)"})', 0, 0, 2),
    ("regex that finds few", '{__name__=~"node_load.+",instance=~".*77.*"}', 0, 0, 5),
]
WEEK = [
    ("7 d, 60 s: sum of rates", "sum by (mode) (rate(node_cpu_seconds_total[5m]))", 168 * HOUR, 60, 1),
    ("7 d, 60 s: gauge, 1 h average", "avg by (job) (avg_over_time(node_load1[1h]))", 168 * HOUR, 60, 4),
    ("7 d, 60 s: ratio", "sum(node_memory_MemAvailable_bytes) / count(up)", 168 * HOUR, 60, 4),
    (
        "7 d, 60 s: p99 by handler",
        "histogram_quantile(0.99, sum by (le, handler) (rate(http_request_duration_seconds_bucket[5m])))",
        168 * HOUR, 60, 1,
    ),
]
SETS = {"fleet": FLEET, "large": LARGE, "million": MILLION, "week": WEEK}
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """User and system time of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def ask(url, query, at, length, step):
    """The series of the answer."""
    path, form = "query", {"query": query, "time": at}
    if length:
        path, form = "query_range", {"query": query, "start": at - length, "end": at, "step": step}
    body = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(f"{url}/api/v1/{path}", data=body, timeout=600) as answer:
        return json.loads(answer.read())["data"]["result"]


def main():
    """Prints one line for each query."""
    servers = [(sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4])]
    rounds = int(sys.argv[5]) if len(sys.argv) > 5 else 5
    queries = SETS[sys.argv[6] if len(sys.argv) > 6 else "fleet"]
    newest, instance = [], ""
    for url, _ in servers:
        found = ask(url, "max_over_time(max(timestamp(up))[3h:15s])", time.time(), 0, 0)
        newest.append(float(found[0]["value"][1]))
        instance = ask(url, "topk(1, up)", newest[-1], 0, 0)[0]["metric"]["instance"]
    print(f"{'query':32}{'CPU ms':>9}{'theirs':>9}{'ratio':>7}{'wall ms':>9}{'theirs':>9}{'series':>8}")
    for name, query, length, step, often in queries:
        query = query.replace("@I", instance)
        spent, waited, series = [0.0, 0.0], [0.0, 0.0], [0, 0]
        for count in range(rounds + 1):
            for i, (url, pid) in enumerate(servers):
                before, since = cpu_seconds(pid), time.monotonic()
                for _ in range(often):
                    series[i] = len(ask(url, query, newest[i], length, step))
                if count > 0:
                    spent[i] += cpu_seconds(pid) - before
                    waited[i] += time.monotonic() - since
        ours, theirs = (total / rounds / often * 1000 for total in spent)
        walls = "".join(f"{total / rounds / often * 1000:9.1f}" for total in waited)
        ratio = theirs / ours if ours else float("inf")
        same = str(series[0]) if series[0] == series[1] else f"{series[0]}!={series[1]}"
        print(f"{name:32}{ours:9.1f}{theirs:9.1f}{ratio:7.1f}{walls}{same:>8}", flush=True)


if __name__ == "__main__":
    main()
