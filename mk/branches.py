"""Branches of C files that no run has taken: branches.py OBJECT_FOLDER SOURCE...

Reads what gcov says of each source whose object was built with --coverage. A table of lines and
branches, then each line or branch that nothing took; exit 1 when there is one. Lines of uthash's
macros (HASH_...) are counted apart: the branches in them are that library's.
"""
import json
import re
import subprocess
import sys

APART = re.compile(r"\bHASH_[A-Z]+\(")


def read(objects, source):
    gcda = f"{objects}/{source[:-2]}.gcda"
    out = subprocess.run(
        ["gcov", "--json-format", "--stdout", "--branch-probabilities", gcda],
        check=True, capture_output=True, text=True).stdout
    return [line for file in json.loads(out)["files"] if file["file"].endswith(source)
            for line in file["lines"]]


def main():
    objects, *sources = sys.argv[1:]
    totals, missing = [0] * 5, []
    print("| file | lines | run | branches | taken | apart |\n|---|---|---|---|---|---|")
    for source in sources:
        text = open(source).read().split("\n")
        row = [0] * 5
        for line in read(objects, source):
            number = line["line_number"]
            counts = [branch["count"] for branch in line["branches"]]
            if APART.search(text[number - 1]):
                row[4] += len(counts)
                counts = []
            row[0] += 1
            row[1] += line["count"] > 0
            row[2] += len(counts)
            row[3] += sum(count > 0 for count in counts)
            if not line["count"] or not all(counts):
                missing.append(f"{source}:{number}: {counts}: {text[number - 1].strip()}")
        totals = [a + b for a, b in zip(totals, row)]
        print(f"| {source.rsplit('/', 1)[1]} |", " | ".join(map(str, row)), "|")
    print("| all |", " | ".join(map(str, totals)), "|")
    print("\n".join(missing) or "every branch was taken")
    return bool(missing)


sys.exit(main())
