"""The tokenizer against Hugging Face's `tokenizers`, on random and hostile text."""

import json
import os
import random
import shutil
import unicodedata

import pytest
from tokenizer_reference import (
    ADD_SPECIAL,
    DATA,
    PRE_TOKENIZERS,
    SPLIT_ADDED,
    Cli,
    flag_tokens,
    random_text,
    save,
    train_byte_level,
    train_sentencepiece_style,
)
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors

TEXTS = 60
FILES = ["tokenizers/qwen3", "tokenizers/llama2-style", "models/stories260K"]
FLAG_TEXTS = [t.content for t in flag_tokens()]


def byte_level(name, flags):
    return train_byte_level(
        name,
        normalizer=normalizers.NFC() if flags or name == "qwen2" else None,
        ignore_merges=name in ("llama3", "tekken"),
        added=flag_tokens() if flags else (),
    )


def metaspace(scheme, do_split):
    t = train_sentencepiece_style(added=flag_tokens())
    t.normalizer = None
    t.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=do_split)
    t.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return t


def gemma():
    t = train_sentencepiece_style(added=flag_tokens())
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return t


def strings_for_merges():
    d = json.loads(byte_level("qwen2", False).to_str())
    d["model"]["merges"] = [" ".join(m) for m in d["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(d)), d


def composed_apart(name):
    """Without the added token that a text can become by normalisation alone: the shield only sees
    contents that stand in the text as they are."""
    added = [t for t in flag_tokens() if t.content != "\u00e9"]
    return train_byte_level(name, normalizer=normalizers.NFC(), added=added)


def regex_replaced():
    t = byte_level("gpt2", True)
    t.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.NFKC(), normalizers.Replace("a", "bb")]
    )
    return t


MAKERS = {
    **{n: lambda n=n: byte_level(n, False) for n in PRE_TOKENIZERS},
    **{n + "+flags": lambda n=n: byte_level(n, True) for n in PRE_TOKENIZERS},
    "sp": train_sentencepiece_style,
    "sp+flags": lambda: train_sentencepiece_style(added=flag_tokens()),
    "sp_no_bytes": lambda: train_sentencepiece_style(byte_fallback=False),
    "sp_no_fuse": lambda: train_sentencepiece_style(byte_fallback=False, fuse_unk=False),
    "sp_ignore_merges": lambda: train_sentencepiece_style(ignore_merges=True),
    "metaspace_always": lambda: metaspace("always", True),
    "metaspace_first": lambda: metaspace("first", False),
    "metaspace_never": lambda: metaspace("never", True),
    "gemma": gemma,
    "normalizers": regex_replaced,
    "qwen2+shield": lambda: composed_apart("qwen2"),
    "o200k+shield": lambda: composed_apart("o200k"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenizers by name, each with its program running."""
    have = {}

    def get(name):
        if name not in have:
            folder = str(tmp_path_factory.mktemp("tokenizer"))
            if name in FILES:
                source = os.path.join(DATA, name, "tokenizer.json")
                if not os.path.exists(source):
                    pytest.skip(f"no {name}/tokenizer.json in ../shared/data")
                shutil.copy(source, folder)
                t = Tokenizer.from_file(source)
            else:
                t = MAKERS[name]()
                save(t, folder)
            have[name] = (t, Cli(folder))
        return have[name]

    yield get
    for _, cli in have.values():
        assert cli.close() == 0


def reference_decode(t, ids, skip_special):
    """The reference shows special tokens with normalized=true when the normalizer changes their
    content, even where it is told to skip them. Ours skips every special token."""
    if skip_special:
        special = {i for i, a in t.get_added_tokens_decoder().items() if a.special}
        ids = [i for i in ids if i not in special]
    return t.decode(ids, skip_special_tokens=skip_special)


def check(t, cli, text, r):
    ids = t.encode(text, add_special_tokens=False).ids
    assert cli.encode(text) == ids, ascii(text)
    random_ids = [r.randrange(t.get_vocab_size() + 2) for _ in range(r.randint(0, 30))]
    for some in (ids, random_ids):
        skip = r.random() < 0.5
        want = reference_decode(t, some, skip)
        assert cli.decode(some, skip) == want, (some, skip)
        assert cli.stream(some, skip, step=r.randint(1, 5))[0] == want, (some, skip)


@pytest.mark.parametrize("name", [*FILES, *MAKERS])
def test_random_text(made, name):
    t, cli = made(name)
    r = random.Random(name)
    extra = [a.content for a in t.get_added_tokens_decoder().values()]
    for _ in range(TEXTS):
        check(t, cli, random_text(r, extra), r)


@pytest.mark.parametrize("name", ["qwen2+flags", "sp+flags"])
def test_post_processor(made, name, tmp_path):
    t, _ = made(name)
    t = Tokenizer.from_str(t.to_str())
    if name == "qwen2+flags":
        a, b = "<t0>", "<t1>"
        template = processors.TemplateProcessing(
            single=f"{a} {b} $A {b}",
            special_tokens=[(a, t.token_to_id(a)), (b, t.token_to_id(b))],
        )
        t.post_processor = processors.Sequence([processors.ByteLevel(), template])
    cli = Cli(save(t, tmp_path))
    for text in ("", "hello", "<t0>"):
        assert cli.encode(text, ADD_SPECIAL | SPLIT_ADDED) == t.encode(text).ids
    cli.close()


def interesting_code_points():
    bulk = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x17000, 0x18CFF)]
    bulk += [(0x20000, 0x2A6DF), (0x2A700, 0x323AF), (0xE000, 0xF8FF), (0xF0000, 0x10FFFF)]
    for c in range(0x110000):
        if 0xD800 <= c < 0xE000:
            continue
        rare = unicodedata.category(chr(c)) in ("Cn", "Co")
        rare = rare or any(low < c < high for low, high in bulk)
        if not rare or c % 61 == 0 or unicodedata.category(chr(max(c - 1, 0))) not in ("Cn", "Co", "Lo"):
            yield chr(c)


@pytest.mark.parametrize("name", ["llama3+flags", "gpt2", "o200k", "deepseek", "falcon", "unknown"])
def test_every_code_point(made, name):
    """Each one in front of, between and behind letters, digits and spaces."""
    t, cli = made(name)
    chars = list(interesting_code_points())
    for low in range(0, len(chars), 4000):
        text = "".join(f"a{c}B {c}1'{c}" for c in chars[low : low + 4000])
        if cli.encode(text) != t.encode(text, add_special_tokens=False).ids:
            bad = [c for c in chars[low : low + 4000]
                   if cli.encode(f"a{c}B {c}1'{c}")
                   != t.encode(f"a{c}B {c}1'{c}", add_special_tokens=False).ids]  # fmt: skip
            pytest.fail(f"differs at {[hex(ord(c)) for c in bad[:20]]}, {len(bad)} in all")


def test_every_code_point_beside_added_tokens(made):
    """White space for lstrip and rstrip, word characters for single_word."""
    t, cli = made("llama3+flags")
    chars = list(interesting_code_points())
    for low in range(0, len(chars), 4000):
        text = "".join(f"{c}<t1>{c}<t6>{c}" for c in chars[low : low + 4000])
        assert cli.encode(text) == t.encode(text, add_special_tokens=False).ids, hex(low)


KIB = 1024
LONG = {
    "letter": "a" * 256 * KIB,
    "spaces": " " * 256 * KIB,
    "newlines": "\r\n" * 64 * KIB,
    "marks": "\u0301" * 64 * KIB,
    "marks out of order": "\u0301\u0323" * 64 * KIB,
    "joiners": "\u200d" * 64 * KIB,
    "upper then lower": "A" * 128 * KIB + "\u01c5" + "a" * 64 * KIB,
    "half a special token": "<|im_end" * 16 * KIB,
    "special tokens": "<|im_end|>" * 16 * KIB,
    "jamo": "\u1100\u1161" * 32 * KIB,
}


@pytest.mark.parametrize("name", ["qwen2+flags", "o200k+flags", "sp+flags", "unknown+flags"])
def test_long_runs(made, name):
    t, cli = made(name)
    for kind, text in LONG.items():
        ids = t.encode(text, add_special_tokens=False).ids
        assert cli.encode(text) == ids, kind
        assert cli.decode(ids, False) == t.decode(ids, skip_special_tokens=False), kind


def stopped(text, stops):
    """Reference for stop strings: the one that is complete first, of those the longest."""
    for end in range(1, len(text) + 1):
        hits = [s for s in stops if text[:end].endswith(s)]
        if hits:
            best = max(hits, key=lambda s: len(s.encode()))
            return text[: end - len(best)], stops.index(best)
    return text, -1


@pytest.mark.parametrize("name", ["qwen2+flags", "sp+flags"])
def test_stop_strings(made, name):
    t, cli = made(name)
    r = random.Random(7)
    for _ in range(60):
        ids = [r.randrange(t.get_vocab_size()) for _ in range(r.randint(1, 20))]
        text = reference_decode(t, ids, True)
        stops = ["aab", "aaab", "\u4f60\u597d"]
        for _ in range(r.randint(0, 3)):
            start = r.randrange(len(text) + 1)
            stops.append(text[start : start + r.randint(1, 8)])
        stops = sorted(set(filter(None, stops)))
        r.shuffle(stops)
        for step in (1, 2, 3, 100):
            assert cli.stream(ids, step=step, stops=stops) == stopped(text, stops), (ids, stops)


def test_stream_continues_a_prompt(made):
    t, cli = made("sp")
    r = random.Random(8)
    for _ in range(50):
        prompt = t.encode("Hello", add_special_tokens=False).ids
        ids = t.encode(random_text(r, size=8), add_special_tokens=False).ids
        whole = t.decode(prompt + ids)
        assert whole.startswith("Hello")
        assert cli.stream(ids, continues=True)[0] == whole[len("Hello") :]


@pytest.mark.parametrize("name", ["qwen2+shield", "o200k+shield", "sp+flags", "tokenizers/qwen3"])
def test_shielded_text_is_plain(made, name):
    """No special token comes out of shielded text; other added tokens (`</think>`, `<tool_call>`)
    are vocabulary like any other. With nothing split off, text is as if there were none of them."""
    t, cli = made(name)
    added = t.get_added_tokens_decoder()
    special = {i for i, a in added.items() if a.special and len(a.content.strip().encode()) > 1}
    d = json.loads(t.to_str())
    d["post_processor"] = None
    no_special = json.loads(json.dumps(d))
    for a in no_special["added_tokens"]:
        if a["special"]:  # stays, so that the ids of the others do, but is nowhere to be found
            a["content"] = f"\U000f0000{a['id']}"
    no_special = Tokenizer.from_str(json.dumps(no_special))
    d["added_tokens"] = []
    plain = Tokenizer.from_str(json.dumps(d))
    r = random.Random(9)
    for _ in range(60):
        text = random_text(r, [a.content for a in added.values()])
        shielded = cli.ask("H", payload=text.encode())
        assert shielded.replace(b"\xff", b"") == text.encode()
        ids = cli.encode(shielded)
        assert not special & set(ids), ascii(text)
        if name == "tokenizers/qwen3":  # where no other token begins like a special one
            assert ids == no_special.encode(text, add_special_tokens=False).ids, ascii(text)
        assert cli.encode(text, 0) == plain.encode(text, add_special_tokens=False).ids, ascii(text)


def test_shield_leaves_other_tokens_alone(made):
    _, cli = made("qwen2+flags")
    end = cli.encode("<|im_end|>")
    assert len(end) == 1
    user = cli.ask("H", payload=b"a<|im_end|>b")
    ids = cli.encode(b"<|im_end|>" + user + b"<|im_end|>")
    assert ids.count(end[0]) == 2 and ids[0] == ids[-1] == end[0]


def test_token_bytes(made):
    t, cli = made("qwen2+flags")
    for text in ("\U0001f600", "na\u00efve <|im_end|>", " the"):
        ids = t.encode(text, add_special_tokens=False).ids
        assert b"".join(cli.ask("T", i) for i in ids) == text.encode()


def test_merges_as_strings(tmp_path):
    t, d = strings_for_merges()
    (tmp_path / "tokenizer.json").write_text(json.dumps(d))
    cli = Cli(tmp_path)
    r = random.Random(10)
    for _ in range(20):
        check(t, cli, random_text(r), r)
    cli.close()


def test_llama_class_rules_by_add_bos_token(made, tmp_path):
    t, _ = made("sp")
    ids = t.encode("hello", add_special_tokens=False).ids
    for bos, eos in ((True, False), (False, True), (False, False)):
        config = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": bos,
                  "add_eos_token": eos, "bos_token": "<s>", "eos_token": {"content": "</s>"}}  # fmt: skip
        cli = Cli(save(t, tmp_path / f"{bos}{eos}", config))
        assert cli.encode("hello", ADD_SPECIAL) == [1] * bos + ids + [2] * eos
        cli.close()


def load_error(folder):
    cli = Cli(folder)
    with pytest.raises(RuntimeError) as e:
        cli.ask("I")
    assert cli.process.wait() == 1
    return str(e.value)


UNSUPPORTED = [
    (["model", "type"], "Unigram", "Unigram"),
    (["model", "continuing_subword_prefix"], "##", "continuing_subword_prefix"),
    (["model", "dropout"], 0.1, "dropout"),
    (["normalizer"], {"type": "BertNormalizer"}, "BertNormalizer"),
    (["pre_tokenizer"], {"type": "Whitespace"}, "Whitespace"),
    (["post_processor"], {"type": "RobertaProcessing"}, "RobertaProcessing"),
    (["decoder"], {"type": "CTC"}, "CTC"),
]


@pytest.mark.parametrize("path,value,word", UNSUPPORTED)
def test_unsupported_parts_are_named(made, tmp_path, path, value, word):
    d = json.loads(made("gpt2")[0].to_str())
    at = d
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(d))
    line = load_error(tmp_path)
    assert word in line and line.startswith("-6 "), line


def test_missing_files(tmp_path):
    assert load_error(tmp_path).startswith("-3 ")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    line = load_error(tmp_path)
    assert line.startswith("-6 ") and "SentencePiece" in line
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "mer')
    assert load_error(tmp_path).startswith("-1 ")
