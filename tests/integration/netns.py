"""Nodes as network namespaces: each with its own interfaces, all on one bridge."""

import ctypes
import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

from conftest import BIN, PATIENCE, alive

NETNS = pathlib.Path("/run/netns")
CLONE_NEWNET = 0x40000000
counter = itertools.count()


def run(*words, check=True):
    return subprocess.run(list(map(str, words)), check=check, capture_output=True, text=True)


def missing():
    """Why namespaces can not be used here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "there is no ip (iproute2)"
    name = f"phx-{os.getpid()}-try"
    tried = run("ip", "netns", "add", name, check=False)
    if tried.returncode:
        return "ip netns add: " + tried.stderr.strip()
    try:
        for kind in (["type", "bridge"], ["type", "veth", "peer", "name", "x1"]):
            tried = run("ip", "-n", name, "link", "add", "x0", *kind, check=False)
            if tried.returncode:
                return f"ip link add {kind[1]}: " + tried.stderr.strip()
            run("ip", "-n", name, "link", "del", "x0")
    finally:
        run("ip", "netns", "del", name)
    return None


def lossy():
    """Why packets can not be dropped at random here; None when they can."""
    if not shutil.which("nft"):
        return "there is no nft"
    return None


class Network:
    """`count` namespaces with eth0 (10.77.0.N+1) and, with two nets, eth1 (10.78.0.N+1)."""

    def __init__(self, count, nets=1):
        prefix = f"phx{os.getpid() % 100000}-{next(counter)}"
        self.hub, self.nodes = f"{prefix}-hub", [f"{prefix}-{i}" for i in range(count)]
        self.nets = nets
        for name in [self.hub, *self.nodes]:
            run("ip", "netns", "add", name)
        for net in range(nets):
            run("ip", "-n", self.hub, "link", "add", f"br{net}", "type", "bridge")
            run("ip", "-n", self.hub, "link", "set", f"br{net}", "up")
        for i, name in enumerate(self.nodes):
            run("ip", "-n", name, "link", "set", "lo", "up")
            for net in range(nets):
                run("ip", "-n", self.hub, "link", "add", f"p{net}-{i}", "type", "veth", "peer",
                    "name", f"eth{net}", "netns", name)
                run("ip", "-n", self.hub, "link", "set", f"p{net}-{i}", "master", f"br{net}", "up")
                run("ip", "-n", name, "addr", "add", f"{self.address(i, net)}/24", "dev",
                    f"eth{net}")
                run("ip", "-n", name, "link", "set", f"eth{net}", "up")

    def address(self, node, net=0):
        return f"10.{77 + net}.0.{node + 1}"

    def cut(self, node):
        for net in range(self.nets):
            run("ip", "-n", self.hub, "link", "set", f"p{net}-{node}", "down")

    def mend(self, node):
        for net in range(self.nets):
            run("ip", "-n", self.hub, "link", "set", f"p{net}-{node}", "up")

    def drop(self, node, hook, percent):
        """Of the packets that come into a node ("input") or leave it ("output")."""
        nft = ["ip", "netns", "exec", self.nodes[node], "nft"]
        what = [] if percent == 100 else ["numgen", "random", "mod", "100", "<", str(percent)]
        run(*nft, "add", "table", "inet", "loss")
        run(*nft, "add", "chain", "inet", "loss", hook,
            "{ type filter hook %s priority 0 ; }" % hook)
        for net in range(self.nets):
            side = "iifname" if hook == "input" else "oifname"
            run(*nft, "add", "rule", "inet", "loss", hook, side, f"eth{net}", *what, "counter",
                "drop")

    def dropped(self, node):
        """Packets that `drop` took, then nothing is dropped any more."""
        nft = ["ip", "netns", "exec", self.nodes[node], "nft"]
        rules = run(*nft, "list", "table", "inet", "loss").stdout
        run(*nft, "delete", "table", "inet", "loss")
        return sum(map(int, re.findall(r"counter packets (\d+)", rules)))

    def connect(self, node, address, timeout):
        """A TCP connection from inside a namespace: sockets belong to the one they were made in."""
        result = []

        def inside():
            libc = ctypes.CDLL(None, use_errno=True)
            with open(NETNS / self.nodes[node]) as f:
                if libc.setns(f.fileno(), CLONE_NEWNET):
                    result.append(OSError(ctypes.get_errno(), "setns"))
                    return
            try:
                result.append(socket.create_connection(address, timeout))
            except OSError as e:
                result.append(e)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    def close(self):
        for name in [*self.nodes, self.hub]:
            run("ip", "netns", "del", name, check=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Node:
    """`phalanx serve` of one node."""

    def __init__(self, net, index, folder, args, env=None):
        self.net, self.index = net, index
        self.log_path = folder / f"node-{index}.log"
        self.run_dir = folder / f"run-{index}"
        self.command = ["ip", "netns", "exec", net.nodes[index], str(BIN / "phalanx"), "serve",
                        "--node-rank", str(index), "--port", "1919", "--run-dir",
                        str(self.run_dir), *map(str, args)]
        self.env = {**os.environ, **(env or {})}
        self.start()

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, env=self.env,
                                            start_new_session=True)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def request(self, method, path, body=None, timeout=60):
        """An open http.client response."""
        connection = http.client.HTTPConnection("127.0.0.1", 1919, timeout=timeout * PATIENCE)
        connection.sock = self.net.connect(self.index, ("127.0.0.1", 1919), timeout * PATIENCE)
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"Content-Type": "application/json"})
        return connection.getresponse()

    def status(self, path="/health/ready"):
        """HTTP status; 0 when nobody answers."""
        try:
            return self.request("GET", path, timeout=5).status
        except OSError:
            return 0

    def post(self, path, body, timeout=60):
        response = self.request("POST", path, body, timeout)
        return response.status, json.loads(response.read())

    def workers(self):
        return self.children("worker")

    def children(self, role):
        """Process ids by name."""
        found = {}
        for p in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (p / "cmdline").read_bytes().split(b"\0")
                parent = int(re.search(r"PPid:\s+(\d+)", (p / "status").read_text())[1])
            except OSError:
                continue
            if words[0].endswith(b"/phalanx-" + role.encode()) and parent == self.process.pid:
                found[words[1].decode().removeprefix("--name=")] = int(p.name)
        return found

    def wait_said(self, text, seconds=30, after=0):
        return wait(lambda: text in self.log()[after:], seconds,
                    lambda: f"node {self.index} did not say {text!r}:\n{self.log()}")

    def wait_end(self, seconds=30):
        wait(lambda: self.process.poll() is not None, seconds,
             lambda: f"node {self.index} did not end:\n{self.log()}")
        return self.process.returncode

    def kill(self):
        """The launcher dies without a word; its children a moment after it."""
        if self.process.poll() is None:
            children = [pid for role in ("gateway", "tokenizer", "scheduler", "worker")
                        for pid in self.children(role).values()]
            self.process.kill()
            self.process.wait()
            wait(lambda: not any(map(alive, children)), 10, lambda: "children of a dead launcher")


def wait(true, seconds, why):
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


class Nodes:
    """A server on the nodes of a network. Ends them all, and nothing else, at its end."""

    def __init__(self, net, folder, model, tp, args=(), env=None, each=None, ready=True):
        """each: further options of one node or another, by index."""
        key = folder / "cluster.key"
        if not key.exists():
            run(BIN / "phalanx", "keygen", "--cluster-key-file", key)
        count = len(net.nodes)
        self.args = ["--model-path", model, "--tp", tp, "--nnodes", count, "--dist-init-addr",
                     f"{net.address(0)}:5000", "--device", "cpu", "--cluster-key-file", key, *args]
        self.net = net
        self.list = [Node(net, i, folder, [*self.args, *(each or {}).get(i, ())], env)
                     for i in range(count)]
        if ready:
            self.wait_ready()

    def __getitem__(self, index):
        return self.list[index]

    def logs(self):
        return "\n".join(f"---- node {n.index}\n{n.log()}" for n in self.list)

    def wait_ready(self, seconds=60):
        wait(lambda: all(n.status() == 200 for n in self.list), seconds,
             lambda: "not ready:\n" + self.logs())

    def stop(self):
        """SIGTERM to node 0 ends all nodes."""
        self[0].process.send_signal(signal.SIGTERM)
        codes = [n.wait_end() for n in self.list]
        assert codes == [0] * len(codes), self.logs()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and self[0].process.poll() is None:
                self.stop()
        finally:
            for n in self.list:
                n.kill()
        found = re.search(r"(Sanitizer: |runtime error: ).*", self.logs())
        assert not found, f"{found[0]}\n{self.logs()}"


class Stream:
    """A streamed completion, read by a thread."""

    def __init__(self, node, body):
        self.text, self.ended, self.error = "", False, None
        self.response = node.request("POST", "/v1/completions", {**body, "stream": True}, 120)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            for line in self.response:
                if line.startswith(b"data: [DONE]"):
                    self.ended = True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.error = event["error"]
                    else:
                        self.text += event["choices"][0]["text"]
        except (OSError, http.client.HTTPException) as e:
            self.error = repr(e)

    def wait(self, seconds, why):
        self.thread.join(seconds * PATIENCE)
        assert not self.thread.is_alive(), why()
        return self.text
