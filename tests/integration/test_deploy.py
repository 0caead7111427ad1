"""Files of deploy/ against the tables and programs that they speak of."""

import json
import re
import shutil
import subprocess

import pytest

from conftest import BIN, REPO

DEPLOY = REPO / "deploy"


def metric_names():
    """Every series of the gateway's page, without labels."""
    rows = re.findall(r'METRIC\((\w+), (\w+),\s+"([^"{]+)', (REPO / "common/metrics.def").read_text())
    names = set()
    for _, kind, name in rows:
        names |= {name + s for s in ("_bucket", "_sum", "_count")} if kind == "HISTOGRAM" else {name}
    assert len(names) > 30
    return names


def test_dashboard_asks_for_metrics_that_exist():
    board = json.loads((DEPLOY / "grafana/dashboards/phalanx.json").read_text())
    known, used = metric_names(), set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            found = set(re.findall(r"phalanx:(\w+)", target["expr"]))
            assert found and found <= known, (panel["title"], found - known)
            used |= found
    families = {re.sub(r"_(bucket|sum|count)$", "", n) for n in used}
    assert len(families) >= 20
    assert board["uid"] == "phalanx" and len({p["id"] for p in board["panels"]}) == len(board["panels"])


def test_cluster_conf_is_current():
    made = subprocess.run([str(BIN / "phalanx"), "serve", "--conf"], capture_output=True, text=True,
                          check=True).stdout
    assert (DEPLOY / "cluster.conf").read_text() == made, "`make conf` writes it anew"


def test_cluster_conf_has_every_option():
    text = (DEPLOY / "cluster.conf").read_text()
    help_text = subprocess.run([str(BIN / "phalanx"), "help", "serve"], capture_output=True,
                               text=True, check=True).stdout
    flags = set(re.findall(r"^  --([a-z0-9-]+)", help_text, re.M)) - {"help", "version"}
    assert len(flags) > 20
    for flag in flags:
        assert f"#PHALANX_{flag.upper().replace('-', '_')}=" in text
    # As it is it sets nothing.
    assert all(line == "" or line.startswith("#") for line in text.splitlines())


def test_programs_of_the_compose_file_exist():
    text = (REPO / "docker-compose.yml").read_text()
    scripts = re.findall(r"COPY --chmod=755 (\S+) /opt/phalanx/bin/(\S+)",
                         (DEPLOY / "Dockerfile").read_text())
    assert len(scripts) == 2
    for source, name in scripts:
        assert (REPO / source).exists() and name in text
    programs = set(re.findall(r"command: \[(phalanx[\w-]*)", text))
    assert len(programs) == 5
    for program in programs - {name for _, name in scripts}:
        flags = subprocess.run([str(BIN / program), "--help"], capture_output=True, text=True,
                               check=True).stdout
        for line in re.findall(rf"command: \[{program}, (.*)\]", text):
            for flag in re.findall(r"--[a-z0-9-]+", line):
                assert flag in flags, (program, flag)


@pytest.mark.parametrize("script", ["healthcheck.sh", "ranks.sh", "compose.sh", "compose-test.sh"])
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(DEPLOY / script)], check=True)


def test_healthcheck(server):
    def check(*words):
        return subprocess.run([str(DEPLOY / "healthcheck.sh"), *map(str, words)],
                              capture_output=True, check=False).returncode == 0

    assert check("http", server.port) and check("listens", server.port)
    assert not check("http", 1) and not check("listens", 1) and not check("connected", 1)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_unit_is_valid(tmp_path):
    unit = tmp_path / "phalanx.service"
    unit.write_text((DEPLOY / "phalanx.service").read_text().replace(
        "/usr/local/bin/phalanx", str(BIN / "phalanx")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
