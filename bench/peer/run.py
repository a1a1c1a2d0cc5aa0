#!/usr/bin/env python3
"""choird and llama.cpp side by side: same machine, same file, same threads, same prompts, in turns within one run.

usage: bench/peer/run.py [--sections a,b,...] [--rounds N] [--json FILE] [--markdown FILE]
See bench/README.md for what each section measures. Needs only Python's standard library.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import report
from servers import Disturbance, Server, process_cpu_s, run_clients

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECTIONS = ["probe", "inprocess", "start", "decode", "prefill", "clients", "memory", "idle"]
CLIENTS = [1, 4, 8, 16]
SLOTS, SLOT_TOKENS = 16, 2048
N_IN, N_OUT = 128, 64
DISTURBED_SHARE = 0.10  # of one core, taken by foreign processes during a sample


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--llama", help="folder of llama.cpp's programs (default: what bench/peer/build-llama builds)")
    p.add_argument("--no-openmp", help="folder of llama.cpp built without OpenMP (bench/peer/build-llama --no-openmp), as one more peer")
    p.add_argument("--choird", default=os.path.join(ROOT, "build/bin/choird"))
    p.add_argument("--engine-bench", default=os.path.join(ROOT, "build/bin/peer_engine"))
    p.add_argument("--probe", default=os.path.join(ROOT, "build/bin/peer_probe"))
    p.add_argument("--model", help="a GGUF file (default: what scripts/get-model gemma3-270m prints)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--sections", default=",".join(SECTIONS))
    p.add_argument("--peer-only", action="store_true", help="leave choird out")
    p.add_argument("--json", help="write every sample here")
    p.add_argument("--markdown", help="write the table here as well")
    args = p.parse_args()
    unknown = set(args.sections.split(",")) - set(SECTIONS)
    if unknown:
        p.error(f"no section {', '.join(unknown)}: {', '.join(SECTIONS)}")
    return args


def last_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed")
    return done.stdout.strip().splitlines()[-1]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, args, log_folder):
        self.args = args
        self.samples = {}  # (metric, contender) -> [{"value", "disturbed"}]
        threads = str(args.threads)
        peers = [("llama.cpp", args.llama, True), ("llama.cpp --no-repack", args.llama, False)]
        if args.no_openmp:
            peers.append(("llama.cpp, no OpenMP", args.no_openmp, True))
        self.peers = peers
        llama = ["-m", args.model, "-t", threads, "-tb", threads, "-fa", "on",
                 "-c", str(SLOTS * SLOT_TOKENS), "-np", str(SLOTS), "--cache-ram", "0", "--host", "127.0.0.1", "--port", "{port}"]
        choird = [args.choird, args.model, "--threads", threads, "--max-seqs", str(SLOTS), "--max-model-len",
                  str(SLOT_TOKENS), "--host", "127.0.0.1", "--port", "{port}"]
        self.servers = [Server(name, "llama", [os.path.join(folder, "llama-server"), *llama] + ([] if repack else ["--no-repack"]),
                               log_folder) for name, folder, repack in peers]
        if not args.peer_only:
            self.servers.append(Server("choir", "choir", choird, log_folder))

    def add(self, metric, contender, value, share=0.0):
        self.samples.setdefault((metric, contender), []).append({"value": value, "disturbed": round(share, 3)})
        say(f"  {metric:<34} {contender:<24} {value:10.2f}" + (f"   (others took {share:.0%} of a core)" if share > DISTURBED_SHARE else ""))

    def measured(self, metric, server, work):
        with Disturbance(server) as d:
            value = work()
        self.add(metric, server.name, value, d.share)

    def probe(self):
        with Disturbance() as d:
            figures = json.loads(last_line(self.args.probe, str(self.args.threads)))
        for key in ("read_gb_s", "int8_gmac_s", "bf16_gmac_s"):
            self.add(key, "machine", figures[key], d.share)

    def inprocess(self):
        """llama-bench against the engine in one process, without HTTP: the kernels, the scheduler and the sampler."""
        threads = str(self.args.threads)
        for name, folder, repack in self.peers:
            command = [os.path.join(folder, "llama-bench"), "-m", self.args.model, "-t", threads, "-p", "512", "-n", "128", "-fa", "1",
                       "-r", "2", "-o", "json", "--repack", "1" if repack else "0"]
            with Disturbance() as d:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            for test in json.loads(done.stdout):
                metric = "in process: prefill 512, tok/s" if test["n_prompt"] else "in process: decode 128, tok/s"
                for rate in test["samples_ts"]:
                    self.add(metric, name, rate, d.share)
        if not self.args.peer_only:
            with Disturbance() as d:
                figures = json.loads(last_line(self.args.engine_bench, self.args.model, threads, "2"))
            for rate in figures["prefill_512"]:
                self.add("in process: prefill 512, tok/s", "choir", rate, d.share)
            for rate in figures["decode_128"]:
                self.add("in process: decode 128, tok/s", "choir", rate, d.share)

    def start(self):
        with open(self.args.model, "rb") as f:  # warm the page cache
            while f.read(1 << 24):
                pass
        for server in self.servers:
            self.measured_start(server)

    def measured_start(self, server):
        with Disturbance() as d:
            value = server.first_token_s()
        self.add("process start to first token, s", server.name, value, d.share)

    def decode(self):
        for server in self.servers:
            def rate():
                _, seconds, n = server.stream(16, 128)
                return (n - 1) / seconds
            self.measured("server: decode of 1 stream, tok/s", server, rate)

    def prefill(self):
        for server in self.servers:
            def rate():
                began = time.monotonic()
                server.complete(512, 1)
                return 512 / (time.monotonic() - began)
            self.measured("server: prefill of 512, tok/s", server, rate)

    def clients(self):
        for n in CLIENTS:
            for server in self.servers:
                self.measured(f"server: output of {n} client{'s' if n > 1 else ''}, tok/s", server,
                              lambda: run_clients(server, n, 2, N_IN, N_OUT))
                time.sleep(0.3)

    def memory(self):
        for server in self.servers:
            for key, value in server.memory().items():
                self.add(f"memory under {SLOTS} clients: {key}", server.name, value)

    def idle(self):
        time.sleep(2)
        before = [process_cpu_s(s.pid) for s in self.servers]
        time.sleep(10)
        for server, cpu in zip(self.servers, before):
            self.add("idle CPU, % of a core", server.name, (process_cpu_s(server.pid) - cpu) * 10)

    def run(self, sections):
        for i in range(self.args.rounds):
            say(f"round {i + 1} of {self.args.rounds}: machine and in process")
            for section in ("probe", "inprocess", "start"):
                if section in sections:
                    getattr(self, section)()
        try:
            for server in self.servers:
                server.start()
                server.wait_ready()
            for i in range(self.args.rounds):
                say(f"round {i + 1} of {self.args.rounds}: servers")
                for section in ("probe", "decode", "prefill", "clients"):
                    if section in sections:
                        getattr(self, section)()
            for section in ("memory", "idle"):
                if section in sections:
                    getattr(self, section)()
        finally:
            for server in self.servers:
                server.stop()


def cpu_name():
    with open("/proc/cpuinfo") as f:
        lines = [line.split(":", 1) for line in f.read().split("\n\n")[0].splitlines() if ":" in line]
    fields = {name.strip(): value.strip() for name, value in lines}
    return f"{fields.get('model name')} family {fields.get('cpu family')} model {fields.get('model')}, {os.cpu_count()} cores"


def main():
    args = parse_args()
    args.llama = args.llama or last_line(os.path.join(ROOT, "bench/peer/build-llama"))
    args.model = args.model or last_line(os.path.join(ROOT, "scripts/get-model"), "gemma3-270m")
    needed = [args.probe, args.model] + ([] if args.peer_only else [args.choird, args.engine_bench])
    for path in needed:
        if not os.path.exists(path):
            sys.exit(f"{path} is not there: scripts/build makes the programs, scripts/get-model the file")
    with tempfile.TemporaryDirectory(prefix="choir-peer-") as logs:
        bench = Bench(args, logs)
        try:
            bench.run(args.sections.split(","))
        except (RuntimeError, OSError) as e:
            for server in bench.servers:
                if os.path.exists(server.log_path):
                    with open(server.log_path, errors="replace") as f:
                        say(f"--- end of the log of {server.name}\n" + "".join(f.readlines()[-15:]))
            sys.exit(f"failed: {e}")
    version = subprocess.run([os.path.join(args.llama, "llama-server"), "--version"], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True).stdout
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "kernel": platform.release(),
        "threads": args.threads,
        "rounds": args.rounds,
        "model": os.path.basename(args.model),
        "peer": "llama.cpp of llama-cpp-python 0.3.36: " + (version.strip().splitlines() or ["version unknown"])[0],
        "command": " ".join(["bench/peer/run.py"] + sys.argv[1:]),
        "samples": [{"metric": m, "contender": c, "samples": s} for (m, c), s in bench.samples.items()],
    }
    table = report.markdown(result, DISTURBED_SHARE)
    print(table)
    if args.markdown:
        with open(args.markdown, "w") as f:
            f.write(table + "\n")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
