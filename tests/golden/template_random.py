"""Random templates that mostly make sense."""

STRINGS = ["", "a", "Ab c", "  x\n", "<think>r</think>y", "é🎉日", "1", "3.5", "a,b,,c", "it's \"q\"", "ß Σ"]
FILTERS = [
    "upper", "lower", "trim", "length", "string", "list", "first", "last", "tojson", "int", "float",
    "abs", "sort", "unique|list", "join", "join(', ')", "default('d')", "default('d', true)",
    "replace('a', 'bb')", "reverse|list", "title", "capitalize", "indent(2)", "items|list",
    "map('string')|list", "select|list", "reject('none')|list", "select('defined')|list",
    "map(attribute='a')|list", "selectattr('a')|list", "dictsort", "min", "max", "sum", "round(1)",
    "tojson(indent=2)", "tojson(sort_keys=true)", "count", "safe", "escape", "wordcount",
    "batch(2)|list", "select('number')|list", "tojson(ensure_ascii=true)",
]
TESTS = [
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number",
    "boolean", "integer", "float", "true", "false", "odd", "even", "in [1, 'a']", "equalto 1",
    "divisibleby 2", "lower", "upper", "not none", "not string", "ne 1", "lt 2",
]
METHODS = [
    "split()", "split(',')", "strip()", "rstrip('x\\n ')", "lstrip()", "upper()", "title()",
    "startswith('a')", "endswith('y')", "replace('a', '')", "get('a')", "get('b', 1)", "items()",
    "keys()|list", "values()|list", "split('</think>')[-1]", "find('a')", "count('a')",
    "splitlines()", "isdigit()", "rsplit(',', 1)", "a", "b", "name", "items", "index(1)",
]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "and", "or", "in", "not in"]
NAMES = ["n", "s", "l", "d", "nothing", "missing", "rows", "f", "t"]


class Generator:
    def __init__(self, rng):
        self.rng = rng

    def value(self, depth=0):
        """A JSON value."""
        kind = self.rng.randrange(9 if depth < 3 else 6)
        if kind < 2:
            return self.rng.choice(STRINGS)
        if kind == 2:
            return self.rng.randrange(-5, 50)
        if kind == 3:
            return self.rng.choice([0.5, -1.25, 1e20, 3.0, 0.1, 1e-7])
        if kind < 6:
            return self.rng.choice([True, False, None])
        if kind < 8:
            return [self.value(depth + 1) for _ in range(self.rng.randrange(4))]
        return {k: self.value(depth + 1) for k in self.rng.sample(["a", "b", "name", "items"], 2)}

    def variables(self):
        return {
            "n": self.rng.randrange(-3, 20),
            "s": self.rng.choice(STRINGS),
            "l": [self.value(1) for _ in range(self.rng.randrange(5))],
            "d": {"a": self.value(1), "b": self.value(1), "name": self.rng.choice(STRINGS)},
            "nothing": None,
            "rows": [{"a": self.rng.randrange(5), "name": c} for c in "xyz"],
            "f": self.rng.choice([0.25, -2.5, 7.0]),
            "t": self.rng.random() < 0.5,
        }

    def literal(self):
        r = self.rng
        kind = r.randrange(7)
        if kind < 2:
            return repr(r.choice(STRINGS))
        if kind == 2:
            return str(r.randrange(100))
        if kind == 3:
            return r.choice(["1.5", "0.1", "2e3", "7.0"])
        if kind == 4:
            return r.choice(["true", "false", "none"])
        if kind == 5:
            return "[" + ", ".join(self.expression(3) for _ in range(r.randrange(3))) + "]"
        return "{'a': " + self.expression(3) + ", 'b': " + self.expression(3) + "}"

    def expression(self, depth=0):
        r = self.rng
        if depth > 3 or r.random() < 0.25:
            return self.literal() if r.random() < 0.4 else r.choice(NAMES)
        sub = lambda: self.expression(depth + 1)
        kind = r.randrange(11)
        if kind == 0:
            return f"({sub()} {r.choice(BINARY)} {sub()})"
        if kind == 1:
            return f"{sub()} {r.choice(BINARY)} {sub()}"
        if kind == 2:
            return f"({sub()})|{r.choice(FILTERS)}"
        if kind == 3:
            return f"({sub()} is {r.choice(TESTS)})"
        if kind == 4:
            return f"({sub()} if {sub()} else {sub()})"
        if kind == 5:
            return f"({sub()}).{r.choice(METHODS)}"
        if kind == 6:
            # Slices of variables only: jinja2 folds slices of constants with other error rules.
            if r.random() < 0.5:
                return f"{r.choice(NAMES)}[{r.choice([':1', '1:', '::-1', ':-1', '::2', '-2:'])}]"
            return f"({sub()})[{r.choice(['0', '-1', '1', sub()])}]"
        if kind == 7:
            return f"{r.choice(['not ', '-', '+'])}{sub()}"
        if kind == 8:
            return f"{r.choice(NAMES)}|{r.choice(FILTERS)}"
        if kind == 9:
            return f"{r.choice(['s', 'd', 'l', 'rows[0]'])}.{r.choice(METHODS)}"
        return f"range({r.randrange(5)})|{r.choice(FILTERS)}"

    def sign(self):
        return self.rng.choice(["", "", "", "-", "+"])

    def gap(self):
        return self.rng.choice(["", "", "\n", " ", "\n  ", "x", "  y\n", "\t"])

    def tag(self, text):
        return f"{{%{self.sign()} {text} {self.sign()}%}}"

    def statement(self, depth):
        r = self.rng
        kind = r.randrange(8)
        body = lambda: self.body(depth + 1)
        if depth > 2 or kind < 3:
            return f"{{{{{self.rng.choice(['', '', '-'])} {self.expression(1)} {self.rng.choice(['', '', '-'])}}}}}"
        if kind == 3:
            return self.tag(f"if {self.expression(2)}") + body() + self.tag("else") + body() + self.tag("endif")
        if kind == 4:
            loop = r.choice(["l", "rows", "s", "range(3)", "d", "d.items()", self.expression(2)])
            inner = "{{ loop.index }}{{ loop.last }}{{ x }}" if r.random() < 0.5 else ""
            condition = f" if {self.expression(3)}" if r.random() < 0.2 else ""
            return self.tag(f"for x in {loop}{condition}") + inner + body() + self.tag("endfor")
        if kind == 5:
            return self.tag(f"set {r.choice(NAMES)} = {self.expression(2)}")
        if kind == 6:
            return self.tag("set q") + body() + self.tag("endset") + "{{ q }}"
        return self.tag("filter upper") + body() + self.tag("endfilter")

    def body(self, depth):
        return self.gap() + "".join(
            self.statement(depth) + self.gap() for _ in range(self.rng.randrange(1, 3))
        )

    def template(self):
        return self.body(0)
