"""What the tokenizer tests share: the program under test, hostile text, reference tokenizers."""

import json
import os
import random
import struct
import subprocess

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors, trainers

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = os.path.join(os.path.dirname(REPO), "shared", "data")

ADD_SPECIAL, SPLIT_ADDED = 1, 2


class Cli:
    """tokenizer_cli with one model folder."""

    def __init__(self, folder):
        program = os.path.join(os.environ["PHALANX_TESTS_BIN"], "tokenizer_cli")
        self.process = subprocess.Popen(
            [program, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ask(self, op, argument=0, payload=b""):
        pipe = self.process
        try:
            pipe.stdin.write(op.encode() + struct.pack("<II", argument, len(payload)) + payload)
            pipe.stdin.flush()
            head = pipe.stdout.read(8)
        except BrokenPipeError:
            head = b""
        if len(head) < 8:
            raise RuntimeError(pipe.stderr.read().decode())
        status, size = struct.unpack("<II", head)
        body = pipe.stdout.read(size)
        if status:
            raise ValueError(body.decode())
        return body

    def encode(self, text, flags=SPLIT_ADDED):
        if isinstance(text, str):
            text = text.encode()
        body = self.ask("E", flags, text)
        return list(struct.unpack(f"<{len(body) // 4}I", body))

    def decode(self, ids, skip_special=True):
        return self.ask("D", int(skip_special), pack(ids)).decode()

    def stream(self, ids, skip_special=True, continues=False, step=1, stops=()):
        head = struct.pack("<I", len(stops))
        for stop in stops:
            head += struct.pack("<I", len(stop.encode())) + stop.encode()
        argument = int(skip_special) | int(continues) << 1 | step << 8
        body = self.ask("S", argument, head + pack(ids))
        return body[4:].decode(), struct.unpack("<i", body[:4])[0]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.wait()


def pack(ids):
    return struct.pack(f"<{len(ids)}I", *ids)


# --- text ---

RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x41, 0x5A), (0x30, 0x39), (0x00, 0x20),
    (0x7F, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x2150, 0x218F), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF),
    (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF), (0xE0000, 0xE01EF), (0x10FFF0, 0x10FFFF),
]  # fmt: skip
PIECES = [
    "\r\n", "\n\n", " \n", "\t", "  ", "    ", "\u00a0", "\u3000", "\u0085", "\u180e", "\u200d",
    "'s", "'S", "'ll", "'LL", "'\u017f", "'re", "'RE", "'x", " 's", "don't", "I'VE", "123", "1234567",
    " 42", "\u00b2\u00b3", "\u0660\u0661", "\u216b", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea", "e\u0301", "\u1112\u1161\u11ab", "a\u0323\u0307", "\u212b", "\u0958",
    "\u01c5", "HelloWorld", "helloWORLD", "XMLHttp", "\u01c5abc", "\u02b0A", "a\u02b0B", "/", "//\n",
    "...\r\n", "!?", "#include", "\u4f60\u597d", "\u3053\u3093\u306b\u3061\u306f", "\u0e2a\u0e27\u0e31",
    "\u2581", "\u2581\u2581", "\u0120", "\u010a", "\u0000", "\ufeff", "\ufffd", "\U000e0001", "\ufffe",
    "\u0378", "\U0003fffe", "The quick brown fox", " the", " of", "_foo", "<0x41>", "<0xE2>", "<unk>",
]  # fmt: skip


def random_char(r):
    if r.random() < 0.08:
        cp = r.randrange(0x110000)
    else:
        cp = r.randint(*r.choice(RANGES))
    return "\ufffd" if 0xD800 <= cp < 0xE000 else chr(cp)


def random_text(r, extra=(), size=40):
    out = []
    for _ in range(r.randint(0, size)):
        kind = r.random()
        if kind < 0.35:
            out.append(r.choice(PIECES))
        elif kind < 0.45 and extra:
            out.append(r.choice(extra))
        elif kind < 0.55:
            low, high = r.choice(RANGES)
            out.append("".join(chr(r.randint(low, high)) for _ in range(r.randint(1, 6))))
        elif kind < 0.6:
            out.append(random_char(r) * r.randint(2, 70))
        elif kind < 0.65:
            cut = r.choice(list(extra) or PIECES)
            out.append(cut[: r.randint(0, len(cut))])
        elif kind < 0.8:
            out.append(" ")
        else:
            out.append(random_char(r))
    return "".join(out)


# --- tokenizers ---

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
LLAMA3 = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
U, W = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{U}*{W}+(?i:{CONTRACTIONS})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{U}+{W}*(?i:{CONTRACTIONS})?|\p{{N}}{{1,3}}" + TAIL
)
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{U}*{W}+|[^\r\n\p{{L}}\p{{N}}]?{U}+{W}*|\p{{N}}" + TAIL
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+".replace('\\"', '"'),
]
UNKNOWN = r"[\p{L}\p{M}]+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+"


def split(pattern, behavior="isolated", invert=False):
    return pre.Split(Regex(pattern), behavior, invert)


def byte_level(regex=False, prefix=False):
    return pre.ByteLevel(add_prefix_space=prefix, use_regex=regex)


PRE_TOKENIZERS = {
    "llama3": lambda: pre.Sequence([split(LLAMA3), byte_level()]),
    "qwen2": lambda: pre.Sequence([split(QWEN2), byte_level()]),
    "gpt2": lambda: byte_level(regex=True),
    "gpt2_prefix": lambda: byte_level(regex=True, prefix=True),
    "o200k": lambda: pre.Sequence([split(O200K), byte_level()]),
    "tekken": lambda: pre.Sequence([split(TEKKEN), byte_level()]),
    "deepseek": lambda: pre.Sequence([split(p) for p in DEEPSEEK] + [byte_level()]),
    "falcon": lambda: pre.Sequence(
        [pre.Punctuation("contiguous"), byte_level(regex=True), pre.Digits(False),
         split("[0-9][0-9][0-9]")]
    ),  # fmt: skip
    "digits": lambda: pre.Sequence([pre.Digits(True), byte_level(regex=True, prefix=True)]),
    "unknown": lambda: pre.Sequence([split(UNKNOWN), byte_level()]),
    "unknown_marks": lambda: pre.Sequence(
        [split(QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+",
               r"[^\s\p{L}\p{M}\p{N}]+")), byte_level()]
    ),  # fmt: skip
    "unknown_removed": lambda: pre.Sequence([split(r"\s+|[^\S\n]|\P{L}b", "removed"), byte_level()]),
}
for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
    for inverted in (False, True):
        PRE_TOKENIZERS[f"{behavior}_{inverted}"] = lambda b=behavior, i=inverted: pre.Sequence(
            [pre.Split(" ", b, i), split(r"\p{N}{1,3}", b, i), pre.Punctuation(b), byte_level()]
        )


def corpus(seed):
    r = random.Random(seed)
    words = "the of and to in is Hello World don't I'll they've 2024 foo_bar naïve straße".split()
    words += ["привет", "мир", "你好", "世界", "こんにちは", "안녕", "नमस्ते", "e\u0301te", "😀", "👍🏽", "Ωmega"]
    return [
        "".join(r.choice(words) + r.choice([" ", " ", "\n", ", ", "  ", "...", "(", "\t"])
                for _ in range(40)) for _ in range(200)
    ]  # fmt: skip


def train_byte_level(name, normalizer=None, ignore_merges=False, added=(), size=700):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizer
    t.pre_tokenizer = PRE_TOKENIZERS[name]()
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    t.train_from_iterator(corpus(name), trainer)
    if ignore_merges:
        d = json.loads(t.to_str())
        d["model"]["ignore_merges"] = True
        del d["model"]["merges"][::7]  # so that whole words matter
        t = Tokenizer.from_str(json.dumps(d))
    t.add_tokens(list(added))
    return t


def train_sentencepiece_style(added=(), **model):
    """Llama-2's way: spaces as U+2581, bytes for what is not in the vocabulary."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    t.pre_tokenizer = pre.Split("\u2581", "merged_with_next")
    t.train_from_iterator(corpus("sentencepiece"), trainer)
    t.pre_tokenizer = None
    t.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    d = json.loads(t.to_str())
    size = len(d["model"]["vocab"])
    for b in range(256):
        d["model"]["vocab"][f"<0x{b:02X}>"] = size + b
    d["model"].update(model)
    t = Tokenizer.from_str(json.dumps(d))
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    t.add_tokens(list(added))
    return t


def flag_tokens():
    """Added tokens with every combination of flags, some of them overlapping in content."""
    out = []
    for bits in range(16):
        single, left, right, normal = (bool(bits & 1 << i) for i in range(4))
        for special in (False, True):
            out.append(
                AddedToken(f"<t{bits}{'s' if special else ''}>", single_word=single, lstrip=left,
                           rstrip=right, normalized=normal, special=special)
            )  # fmt: skip
    out += [
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("<t1", normalized=False),
        AddedToken("<|im_end|>", normalized=False, special=True),
        AddedToken("<|im_end|><|im_end|>", normalized=False),
        AddedToken("\u00e9", normalized=True),
        AddedToken("e\u0301x", normalized=False),
        AddedToken(" \u4f60", normalized=False, rstrip=True),
    ]
    return out


def save(tokenizer, folder, config=None):
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    if config is not None:
        with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
            json.dump(config, f)
    return folder
