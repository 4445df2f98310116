"""Holds files and classes of the product to a size that a reader can take in.

Reads paths from standard input, each ended by a zero byte, and looks at those that
count. A file has at most 600 lines. A class has at most 25 methods, public and private
together: names that its body or its out-of-line definitions give to functions, each
counted once however often it is overloaded; constructors, the destructor and operators
do not count, whatever they are defaulted or deleted to.

What is larger is one thing, and says why: a sentence that begins with "One file because"
stands in the comment at the head of the file, and one that begins with "One class
because" in the comment directly above the class.

Apart are tests and what only they use (the folders tests, testing and testdata; files
called *_test, test_* or fake_*, but not a *_test.cc with a header of its name, which is
no test), and the headers of wasm2c's runtime, which are not ours.

Methods are found by Debian's universal-ctags.
"""

import collections
import json
import os
import re
import subprocess
import sys

MOST_LINES = 600
MOST_METHODS = 25
FILE_SENTENCE = "One file because"
CLASS_SENTENCE = "One class because"


def counts(path):
    """Whether a file is of the product."""
    folders = path.split("/")[:-1]
    stem, extension = os.path.splitext(os.path.basename(path))
    if extension not in (".cc", ".c", ".h", ".py"):
        return False
    if {"tests", "testing", "testdata"} & set(folders):
        return False
    if stem.startswith(("test_", "fake_", "wasm-rt")):
        return False
    is_test = stem.endswith("_test")
    return not is_test or os.path.exists(os.path.splitext(path)[0] + ".h")


def as_text(comment):
    """The words of comment lines, without what makes them comments."""
    return " ".join(" ".join(re.sub(r'^\s*(//|#|/\*|\*/|\*|""")', "", line)
                             for line in comment).split())


def head_of(lines):
    """The comment, or the docstring, that a file begins with."""
    head = []
    for line in lines:
        if re.match(r"#(include|ifndef|define|pragma)|import |from |namespace|class ",
                    line):
            break
        head.append(line)
    return as_text(head)


def above(lines, number):
    """The comment directly above a line, which is counted from 1."""
    comment = []
    for line in reversed(lines[:number - 1]):
        if re.match(r"\s*(//|template\b)", line):
            comment.insert(0, line)
        else:
            break
    return as_text(comment)


def has(text, sentence):
    return re.search(r"(^|[.:!?)] )" + sentence + r" \w", text) is not None


def classes_of(paths):
    """The classes in C++ files: path, line, name, and the names of their methods."""
    out = subprocess.run(
        ["ctags-universal", "--quiet", "--options=NONE", "--output-format=json",
         "--fields=+nZK", "--kinds-C++=pfcs", "--language-force=C++", "-f", "-",
         # Behind a method they would look like methods.
         "-I", "ABSL_GUARDED_BY+,ABSL_EXCLUSIVE_LOCKS_REQUIRED+,"
         "ABSL_SHARED_LOCKS_REQUIRED+,ABSL_LOCKS_EXCLUDED+,ABSL_ACQUIRED_AFTER+,"
         "ABSL_EXCLUSIVE_LOCK_FUNCTION+,ABSL_UNLOCK_FUNCTION+,ABSL_LOCKABLE,"
         "ABSL_SCOPED_LOCKABLE,ABSL_ASSERT_EXCLUSIVE_LOCK+",
         "-L", "-"],
        input="\n".join(paths), capture_output=True, text=True, check=True).stdout
    tags = [json.loads(line) for line in out.splitlines()]
    lines = {}  # Of classes, by path and name.
    headers = {}  # The path of each class, for methods that are defined elsewhere.
    for tag in tags:
        if tag["kind"] in ("class", "struct"):
            name = "::".join(filter(None, (tag.get("scope"), tag["name"])))
            lines[tag["path"], name] = tag["line"]
            headers.setdefault(name, tag["path"])
    methods = collections.defaultdict(set)
    for tag in tags:
        scope = tag.get("scope")
        name = tag["name"]
        if tag.get("scopeKind") not in ("class", "struct") or scope not in headers or \
                tag["kind"] in ("class", "struct") or \
                name.startswith(("~", "operator")) or name == scope.split("::")[-1]:
            continue
        path = tag["path"] if (tag["path"], scope) in lines else headers[scope]
        methods[path, scope].add(name)
    return [(path, lines[path, name], name, names)
            for (path, name), names in methods.items()]


def main():
    paths = [path for path in sys.stdin.read().split("\0") if path and counts(path)]
    texts = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            texts[path] = file.read().splitlines()
    found = []
    for path, lines in texts.items():
        if len(lines) > MOST_LINES and not has(head_of(lines), FILE_SENTENCE):
            found.append(
                f"{path}: {len(lines)} lines, and a file has at most {MOST_LINES}: "
                "move what a reader looks for by another name to a file of that "
                f'name, or say in the head comment why not: "{FILE_SENTENCE} ..."')
    for path, line, name, methods in classes_of(
            [path for path in paths if not path.endswith(".py")]):
        if len(methods) > MOST_METHODS and \
                not has(above(texts[path], line), CLASS_SENTENCE):
            name = re.sub(r"__anon\w+::", "", name)
            found.append(
                f"{path}:{line}: class {name} has {len(methods)} methods, and a "
                f"class has at most {MOST_METHODS}, public and private: give what "
                "it does besides to another class or to functions, or say in the "
                f'comment above it why not: "{CLASS_SENTENCE} ..."')
    print("\n".join(sorted(found)), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


sys.exit(main())
