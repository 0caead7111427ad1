"""Chat templates: our interpreter against jinja2 with transformers' settings."""

import json
import os
import random

import pytest

import template_cases as cases
from template_random import Generator
from template_reference import Cli, environment, reference

SHARED = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "data", "tokenizers")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def cli():
    process = Cli()
    yield process
    assert process.close() == 0


@pytest.fixture(scope="module")
def env():
    return environment()


def check(cli, env, source, variables, shield=True):
    """Same text as jinja2; an error where jinja2 raises. Shield bytes make no difference."""
    expected_status, expected = reference(env, source, variables)
    status, text = cli.render(source, variables)
    where = f"template {source!r}"
    if expected_status == "err":
        assert status == "err", f"{where}: jinja2 raises {expected!r}, we gave {text!r}"
        assert text
        if type(expected).__name__ == "TemplateError":
            assert text == str(expected)
        return False
    if " object at 0x" in expected.lower() or "<class" in expected:
        assert status == "ok", where  # what Python prints for a method has no counterpart
        return True
    assert (status, text) == ("ok", expected), where
    if shield:
        assert cli.render(source, variables, shield=True) == ("ok", expected), f"shielded, {where}"
    return True


@pytest.mark.parametrize("source", cases.CONSTRUCTS)
def test_construct(cli, env, source):
    # Several of a line's outputs depend on the code points of the variables: no shields there.
    check(cli, env, source.replace("\\\\n", "\n"), cases.CONSTRUCT_VARS, shield=False)


@pytest.mark.parametrize("source", cases.WHITESPACE)
def test_whitespace(cli, env, source):
    assert check(cli, env, source, {}) or "{{ 1 }}{" not in source


def message_shapes():
    for messages in cases.MESSAGES.values():
        for tools in (None, cases.TOOLS):
            for prompt in (False, True):
                yield {
                    "messages": messages,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": prompt,
                    **TOKENS,
                }


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_family(cli, env, family):
    rendered = 0
    for variables in message_shapes():
        rendered += check(cli, env, cases.FAMILIES[family], variables)
    assert rendered >= 8


@pytest.mark.parametrize("model", ["qwen3", "llama2-style"])
def test_real_template(cli, env, model):
    path = os.path.join(SHARED, model, "tokenizer_config.json")
    if not os.path.exists(path):
        pytest.skip(f"the tokenizer of {model} is not beside the repository")
    with open(path) as f:
        source = json.load(f)["chat_template"]
    rendered = 0
    for variables in message_shapes():
        for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
            rendered += check(cli, env, source, {**variables, **thinking})
    assert rendered >= 50


def test_mutators(cli):
    """append and pop work, which transformers' sandbox refuses."""
    env = environment(mutable=True)
    for source in (
        "{% set l = [] %}{% for x in 'abc' %}{% set _ = l.append(x) %}{% endfor %}{{ l }}",
        "{% set l = [1, 2, 3] %}{{ l.pop() }}{{ l.pop(0) }}{{ l }}",
        "{% set d = {'a': 1} %}{{ d.pop('a') }}{{ d.pop('b', 5) }}{{ d }}",
        "{% set l = [] %}{{ l.pop() }}",
        "{{ {}.pop('x') }}",
        "{% set l = [1] %}{% for x in l %}{% if x < 5 %}{{ l.append(x + 1) }}{% endif %}{% endfor %}{{ l }}",
    ):
        check(cli, env, source, {})


def test_error_names_line(cli):
    assert "line 3" in cli.render("a\nb\n{{ 1 / 0 }}", {})[1]
    assert "line 2" in cli.render("\n{% nonsense %}", {})[1]


@pytest.mark.parametrize("seed", range(8))
def test_random(cli, env, seed):
    """Templates of random statements and expressions, with the errors that they run into."""
    generator = Generator(random.Random(seed))
    rendered = 0
    for _ in range(300):
        rendered += check(cli, env, generator.template(), generator.variables(), shield=False)
    assert rendered > 50
