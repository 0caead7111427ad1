"""Several nodes: who may join and what each is told, and a server whose nodes are network
namespaces with real interfaces: it gives the text of one process, and outlives cuts and losses."""

import os
import re
import signal
import subprocess
import time

import pytest

import netns
from conftest import BIN, DEMO, PATIENCE, SHARED, Server
from netns import Network, Node, Nodes, Stream, run, wait
from test_recovery import torn

STORIES = SHARED / "data/models/stories260K"
MODELS = [
    pytest.param(DEMO, id="demo"),
    pytest.param(STORIES, id="stories260K", marks=pytest.mark.skipif(
        not STORIES.exists(), reason="../shared/data/models/stories260K is not there")),
]
why_not = netns.missing()
needs_namespaces = pytest.mark.skipif(why_not is not None, reason=str(why_not))
needs_loss = pytest.mark.skipif(netns.lossy() is not None, reason=str(netns.lossy()))

GREEDY = {"prompt": "Good morrow, my lord", "max_tokens": 48, "temperature": 0}
SEEDED = {"prompt": "Once upon a time", "max_tokens": 48, "temperature": 0.8, "seed": 7}
LONG = {"prompt": "What say you to the king of this fair land", "max_tokens": 400,
        "temperature": 0, "ignore_eos": True}


def text_of(server, body, timeout=60):
    status, answer = server.post("/v1/completions", body, timeout=timeout)
    assert status == 200, answer
    return answer["choices"][0]["text"]


@pytest.fixture(scope="module")
def alone():
    """Texts of a server on one node, one process a group."""
    with Server(tp=1) as s:
        return {"greedy": text_of(s, GREEDY), "long": text_of(s, LONG)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two nodes of one rank each, shared by tests that leave them as they were."""
    if why_not:
        pytest.skip(why_not)
    with Network(2) as net, Nodes(net, tmp_path_factory.mktemp("pair"), DEMO, 2) as nodes:
        yield nodes


# ---- it serves ----

@needs_namespaces
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [2, 4])
def test_same_text(tmp_path, model, count):
    with Server(model=model, tp=1) as s:
        wanted = [text_of(s, GREEDY), text_of(s, SEEDED)]
    with Network(count) as net, Nodes(net, tmp_path, model, 4) as nodes:
        assert [len(n.workers()) for n in nodes.list] == [4 // count] * count
        assert [text_of(nodes[0], GREEDY), text_of(nodes[0], SEEDED)] == wanted, nodes.logs()
        run_dirs = [tmp_path / f"run-{i}" for i in range(count)]
    assert not any(d.exists() for d in run_dirs)


@needs_namespaces
def test_health_of_others(pair):
    assert pair[1].status("/health") == pair[1].status("/health/live") == 200
    assert pair[1].status("/metrics") == 200
    shown = run(BIN / "phalanx", "status", "--run-dir", pair[1].run_dir).stdout
    assert ", ready, " in shown and "worker-1 " in shown and "gateway-0 " in shown, shown
    for level in "debug", "info":  # SIGHUP steps the levels of this node alone
        pair[1].process.send_signal(signal.SIGHUP)
        pair[1].wait_said(f"log level {level}")
    assert "log level" not in pair[0].log()
    status, answer = pair[1].post("/v1/completions", GREEDY)
    assert status == 404 and "node 0 serves" in answer["error"]["message"]


@needs_namespaces
@pytest.mark.parametrize("option", ["--dist-interface", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"])
def test_several_interfaces(tmp_path, option):
    env = {option: "eth1"} if option.isupper() else None
    args = () if env else (option, "eth1")
    with Network(2, nets=2) as net, Nodes(net, tmp_path, DEMO, 2, args, env) as nodes:
        assert "over eth1 (10.78.0.2)" in nodes[1].log()
        assert "node 1 (" in nodes[0].log() and "eth1 10.78.0.2) is here" in nodes[0].log()
        text_of(nodes[0], GREEDY)
        seen = run("ip", "netns", "exec", net.nodes[1], "ss", "-Htnp", "state", "established")
        gloo = [line for line in seen.stdout.splitlines() if "10.78.0." in line]
        assert gloo and all("phalanx-worker" in line for line in gloo), seen.stdout


# ---- who may join ----

def ends(nodes, wanted):
    """Each node ends by itself, with status 1, and says its words."""
    for node, words in zip(nodes, wanted):
        assert node.wait_end(40) == 1, node.log()
        for word in [words] if isinstance(words, str) else words:
            assert word in node.log(), node.log()


DIFFERENT = {
    "options": ({1: ["--page-size", "32"]},
                "was started with --page-size 32, node 0 with --page-size 16"),
    "model": ({1: ["--model-path", STORIES]}, "has another model than node 0"),
    "nnodes": ({1: ["--nnodes", "4", "--tp", "4"]},
               "was started with --nnodes 4, node 0 with 2"),
}


@needs_namespaces
@pytest.mark.parametrize("what", DIFFERENT)
def test_different(tmp_path, what):
    each, words = DIFFERENT[what]
    if what == "model" and not STORIES.exists():
        pytest.skip("../shared/data/models/stories260K is not there")
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2, each=each, ready=False) as nodes:
        ends(nodes.list, [words, [words, "node 0 refuses this node"]])


@needs_namespaces
def test_wrong_key(tmp_path):
    other = tmp_path / "other.key"
    run(BIN / "phalanx", "keygen", "--cluster-key-file", other)
    each = {0: ["--dist-timeout", "4"], 1: ["--dist-timeout", "3", "--cluster-key-file", other]}
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2, each=each, ready=False) as nodes:
        ends(nodes.list, ["node 1 did not come to 10.77.0.1:5000 within 4 s (--dist-timeout)",
                          ["no answer from node 0 at 10.77.0.1:5000: nobody is there, or its "
                           "cluster key is another", "gave up after 3 s (--dist-timeout)"]])


@needs_namespaces
def test_loopback_given_to_another(tmp_path):
    each = {i: ["--dist-init-addr", "127.0.0.1:5000", "--dist-timeout", "3"] for i in range(2)}
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2, each=each, ready=False) as nodes:
        ends(nodes.list, ["(a loopback address: only this machine reaches it)",
                          "it is a loopback address: node 0 would be on this machine"])


@needs_namespaces
def test_unreachable_and_missing(tmp_path):
    """Who is missing is said again and again, and at the deadline to all who are there."""
    each = {0: ["--dist-timeout", "8"], 2: ["--dist-init-addr", "10.77.0.9:5000",
                                            "--dist-timeout", "7"]}
    with Network(3) as net, Nodes(net, tmp_path, DEMO, 3, each=each, ready=False) as nodes:
        nodes[1].wait_said("node 1 is connected to node 0")
        ready = wait(lambda: nodes[1].request("GET", "/health/ready"), 10, nodes.logs)
        assert ready.status == 503
        late = "node 2 did not come to 10.77.0.1:5000 within 8 s (--dist-timeout)"
        ends(nodes.list, [late, "node 0 ends all nodes: " + late,
                          "no answer from node 0 at 10.77.0.9:5000"])
        said = re.findall(r"phalanx: waiting for node (?:1, )?2 of --nnodes 3", nodes[0].log())
        assert len(said) >= 2, nodes[0].log()
        assert "node 2 waits: no answer" in nodes[2].log()


@needs_namespaces
def test_needs_key(tmp_path):
    """Without a key only loopback, unless the network is trusted in so many words."""
    with Network(2) as net:
        args = ["--model-path", DEMO, "--tp", 2, "--nnodes", 2, "--device", "cpu",
                "--dist-init-addr", "10.77.0.1:5000"]
        node = Node(net, 0, tmp_path, args)
        assert node.wait_end() == 1
        assert "not loopback: that needs a cluster key" in node.log()
        nodes = [Node(net, i, tmp_path, [*args, "--insecure-bus"]) for i in range(2)]
        try:
            wait(lambda: all(n.status() == 200 for n in nodes), 60, nodes[0].log)
        finally:
            for n in nodes:
                n.kill()


@needs_namespaces
def test_duplicate_rank(pair, tmp_path):
    """The second one ends; the server does not notice."""
    other = Node(pair.net, 1, tmp_path, [*pair.args, "--port", "1920"])
    assert other.wait_end() == 1
    assert "--node-rank 1 is taken by node 1 (" in other.log()
    assert pair[1].status() == 200
    text_of(pair[0], GREEDY)


@pytest.mark.parametrize("args,words", [
    (["--node-rank", "2"], "--node-rank 2: with --nnodes 2 it is 0 to 1"),
    (["--tp", "3"], "--tp-size 3 can not be spread evenly over --nnodes 2"),
    (["--dist-init-addr", "nowhere"], "--dist-init-addr nowhere: it is HOST:PORT"),
    (["--dist-init-addr", "0.0.0.0:5000"], "it is one address of node 0, not all of them"),
    (["--dist-init-addr", "192.0.2.7:5000"], "192.0.2.7 is no address of this machine"),
    (["--dist-interface", "nope0"], "--dist-interface nope0: this node has no such interface"),
])
def test_refused_options(args, words, tmp_path):
    r = subprocess.run([BIN / "phalanx", "serve", "--model-path", DEMO, "--tp", "2", "--nnodes",
                        "2", "--dist-init-addr", "127.0.0.1:5000", "--run-dir", tmp_path / "run",
                        *args], capture_output=True, text=True, timeout=30 * PATIENCE)
    assert r.returncode == 2 and words in r.stderr, r.stderr


# ---- it outlives ----

def restarted(nodes):
    """The ranks of the other nodes were started once more, or oftener: a cut is seen by several."""
    for n in nodes.list[1:]:
        wait(lambda: len(re.findall(r"starts its ranks .* \(epoch (\d+)\)", n.log())) > 1, 30,
             nodes.logs)


@needs_namespaces
@pytest.mark.parametrize("where", [0, 1])
def test_rank_dies(tmp_path, alone, where):
    """On whichever node: all ranks end, and the stream goes on."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 4) as nodes:
        before = nodes[0].workers() | nodes[1].workers()
        stream = Stream(nodes[0], LONG)
        wait(lambda: stream.text or stream.error, 20, nodes.logs)
        os.kill(sorted(nodes[where].workers().items())[0][1], signal.SIGKILL)
        assert not stream.ended
        assert stream.wait(180, nodes.logs) == alone["long"], nodes.logs()
        assert stream.ended and not stream.error
        restarted(nodes)
        after = nodes[0].workers() | nodes[1].workers()
        assert after.keys() == before.keys() and not set(after.values()) & set(before.values())
        nodes.wait_ready()


@needs_namespaces
def test_scheduler_dies(tmp_path, alone):
    """The ranks of all nodes stay, and the stream goes on."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 4) as nodes:
        before = nodes[0].workers() | nodes[1].workers()
        stream = Stream(nodes[0], LONG)
        wait(lambda: stream.text or stream.error, 20, nodes.logs)
        os.kill(nodes[0].children("scheduler")["scheduler-0"], signal.SIGKILL)
        assert stream.wait(120, nodes.logs) == alone["long"], nodes.logs()
        assert stream.ended and not stream.error
        after = nodes[0].workers() | nodes[1].workers()
        assert after == before or torn(nodes.logs()), nodes.logs()
        nodes.wait_ready()


CUTS = [1, 10]
if os.environ.get("PHALANX_LONG_TESTS"):
    CUTS.append(60)


@needs_namespaces
@pytest.mark.parametrize("seconds", CUTS)
def test_cut(tmp_path, alone, seconds):
    """A node without network: the stream pauses, and ends with the right text."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2) as nodes:
        stream = Stream(nodes[0], LONG)
        wait(lambda: stream.text or stream.error, 20, nodes.logs)
        net.cut(1)
        assert not stream.ended
        time.sleep(seconds)
        assert not stream.ended
        if seconds >= 10:
            assert nodes[0].status() == nodes[1].status() == 503, nodes.logs()
            assert not nodes[1].workers(), nodes.logs()
        net.mend(1)
        assert stream.wait(180, nodes.logs) == alone["long"], nodes.logs()
        assert stream.ended and not stream.error, nodes.logs()
        nodes.wait_ready()
        assert text_of(nodes[0], GREEDY) == alone["greedy"]
        if seconds >= 10:
            assert "node 1 (" in nodes[0].log() and "is gone: " in nodes[0].log()
            restarted(nodes)


@needs_namespaces
@needs_loss
def test_loss(tmp_path, alone):
    """A tenth of all packets is lost, on every node: slow, but right."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2) as nodes:
        for i in range(2):
            net.drop(i, "input", 10)
        status, answer = nodes[0].post("/v1/completions", {**GREEDY, "max_tokens": 24}, 120)
        assert net.dropped(0) and net.dropped(1)
        if status == 200:
            assert alone["greedy"].startswith(answer["choices"][0]["text"])
        else: # several epochs were lost: said, not hidden
            assert status == 503, answer
        nodes.wait_ready()
        assert text_of(nodes[0], GREEDY) == alone["greedy"]


@needs_namespaces
@needs_loss
@pytest.mark.parametrize("hook", ["input", "output"])
def test_one_way(tmp_path, alone, hook):
    """A node that hears nothing, or that nobody hears."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2) as nodes:
        stream = Stream(nodes[0], LONG)
        wait(lambda: stream.text or stream.error, 20, nodes.logs)
        net.drop(1, hook, 100)
        assert not stream.ended
        nodes[0].wait_said("is gone: ", 30)
        wait(lambda: nodes[0].status() == 503, 10, nodes.logs)
        assert net.dropped(1)
        assert stream.wait(180, nodes.logs) == alone["long"], nodes.logs()
        assert stream.ended and not stream.error, nodes.logs()
        nodes.wait_ready()


@needs_namespaces
def test_node_ends_and_comes_again(tmp_path, alone):
    """SIGTERM on a node other than 0: the server waits for it."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2) as nodes:
        nodes[1].process.send_signal(signal.SIGTERM)
        assert nodes[1].wait_end() == 0
        nodes[0].wait_said("ended: stopped (SIGTERM)")
        wait(lambda: nodes[0].status() == 503, 10, nodes.logs)
        assert nodes[0].status("/health/live") == 200
        nodes[1].start()
        nodes.wait_ready()
        assert text_of(nodes[0], GREEDY) == alone["greedy"]
        # Without a word, too, and before anybody misses it.
        nodes[1].kill()
        said = len(nodes[1].log())
        nodes[1].start()
        nodes[1].wait_said("starts its ranks", 40, after=said)
        nodes.wait_ready()
        assert text_of(nodes[0], GREEDY) == alone["greedy"]


@needs_namespaces
def test_node_goes_while_loading(tmp_path):
    """As any death before the first readiness: all nodes end, each with a line."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with Network(4) as net, Nodes(net, folder, DEMO, 4, ready=False) as nodes:
            os.kill(wait(nodes[3].workers, 30, nodes.logs)["worker-3"], signal.SIGSTOP)
            time.sleep(1) # what it had said before it was stopped is heard
            if "Try it:" in nodes[0].log():
                continue
            nodes[1].kill()
            why = ["phalanx: ", " is gone"]
            ends([nodes[0], nodes[2], nodes[3]],
                 [why, ["node 0 ends all nodes: "], ["node 0 ends all"]])
            return
    pytest.fail("no rank was met while it loaded")


@needs_namespaces
def test_node_does_not_come_again(tmp_path):
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2, ["--dist-timeout", "6"]) as nodes:
        nodes[1].kill()
        assert nodes[0].wait_end(40) == 1
        assert "node 1 did not come to 10.77.0.1:5000 within 6 s (--dist-timeout)" in nodes[0].log()


@needs_namespaces
def test_node_0_goes(tmp_path, alone):
    """The others end their ranks, wait for it and serve with it again; not for ever."""
    with Network(2) as net, Nodes(net, tmp_path, DEMO, 2, ["--dist-timeout", "9"]) as nodes:
        nodes[0].kill()
        nodes[1].wait_said("node 0 is gone: ")
        wait(lambda: not nodes[1].workers(), 10, nodes.logs)
        assert nodes[1].status() == 503 and nodes[1].status("/health/live") == 200
        nodes[0].start()
        nodes.wait_ready()
        assert text_of(nodes[0], GREEDY) == alone["greedy"]
        nodes[0].kill()
        assert nodes[1].wait_end(40) == 1
        assert "gave up after 9 s (--dist-timeout)" in nodes[1].log()
