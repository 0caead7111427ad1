"""The reference: jinja2 set up as transformers does, and a driver for template_cli."""

import json
import os
import subprocess
from datetime import datetime, timezone

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

NOW = datetime.fromtimestamp(1721995511, timezone.utc).replace(tzinfo=None)


class Generation(jinja2.ext.Extension):
    """{% generation %} blocks: their body, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment(mutable=False):
    kind = SandboxedEnvironment if mutable else ImmutableSandboxedEnvironment
    env = kind(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.filters["from_json"] = json.loads
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: NOW.strftime(fmt)
    return env


class Cli:
    """template_cli as a process that answers many requests."""

    def __init__(self):
        path = os.path.join(os.environ["PHALANX_TESTS_BIN"], "template_cli")
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def render(self, source, variables, shield=False):
        """Returns ("ok", text) or ("err", message)."""
        text = source.encode()
        data = json.dumps(variables).encode()
        mode = "shield" if shield else "plain"
        self.process.stdin.write(b"%s %d %d\n" % (mode.encode(), len(text), len(data)))
        self.process.stdin.write(text + data)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"template_cli died on {source!r} with {variables!r}")
        status, length = line.split()
        return status.decode(), self.process.stdout.read(int(length)).decode()

    def close(self):
        self.process.stdin.close()
        return self.process.wait()


def reference(env, source, variables):
    """Returns ("ok", text) or ("err", the exception)."""
    try:
        return "ok", env.from_string(source).render(**variables)
    except Exception as e:
        return "err", e
