"""Contenders for one of kazoo's Locks, each with a session of its own, shared among processes:
each takes the lock and releases it at once, again and again.

Arguments: servers (host:port, with commas), path, contenders, seconds of warming up, seconds that
are measured. Prints one line of JSON.
"""

import json
import math
import multiprocessing
import os
import sys
import threading
import time

from kazoo.client import KazooClient


def contend(client, path, start, times, latencies):
    lock = client.Lock(path)
    start.wait()
    measured_from, until = times
    # The clock is the same in all processes.
    while time.monotonic() < until.value:
        asked = time.monotonic()
        lock.acquire()
        got = time.monotonic()
        if measured_from.value <= got < until.value:
            latencies.append(got - asked)
        lock.release()


def process(servers, path, mine, start, ready, times, results):
    clients = [KazooClient(hosts=servers[n % len(servers)], timeout=30.0) for n in mine]
    for client in clients:
        client.start(timeout=30)
    latencies = []
    threads = [
        threading.Thread(target=contend, args=(client, path, start, times, latencies))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    ready.release()
    for thread in threads:
        thread.join()
    results.put(latencies)
    for client in clients:
        client.stop()


def main():
    servers = sys.argv[1].split(",")
    path = sys.argv[2]
    contenders, warm_up, measured = (int(text) for text in sys.argv[3:6])
    # One interpreter runs one thread at a time: as many of them as there are processors.
    processes = min(contenders, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    start, ready, results = context.Event(), context.Semaphore(0), context.Queue()
    times = [context.Value("d", 0.0) for _ in range(2)]
    children = [
        context.Process(
            target=process,
            args=(servers, path, range(number, contenders, processes), start, ready, times, results),
        )
        for number in range(processes)
    ]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    now = time.monotonic()
    times[0].value = now + warm_up
    times[1].value = now + warm_up + measured
    start.set()
    latencies = sorted(latency for _ in children for latency in results.get())
    for child in children:
        child.join()

    def at(share):
        return latencies[max(math.ceil(share * len(latencies)) - 1, 0)] * 1e3

    print(
        json.dumps(
            {
                "hand_overs": len(latencies),
                "p50_ms": at(0.5),
                "p99_ms": at(0.99),
                "max_ms": at(1.0),
            }
        )
    )


if __name__ == "__main__":
    main()
