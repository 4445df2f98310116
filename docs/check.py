#!/usr/bin/env python3
"""Holds the documents to the sources. Prints what is wrong; fails if anything is.

  check.py ROOT links       relative links, their anchors, files, labels and tests
                            that are named
  check.py ROOT code        blocks of code that are a region of a source file
  check.py ROOT statistics  docs/statistics.md has the counters and the fields of service/stats.h
  check.py ROOT errors      error texts in docs/embedding.md are in the sources
  check.py ROOT parts       docs/architecture.md draws the arrows that the BUILD files have
  check.py ROOT words       no source or document has a word that docs/glossary.md replaces
  check.py ROOT commands    runs the blocks of commands that say that they run

Marks in a document, each in a line of its own in front of a fenced block:

  <!-- code: FILE#NAME -->  the block is what stands in FILE between the lines
                            "NAME: begin" and "NAME: end", indented less
  <!-- runs -->             the commands succeed; "runs, needs PROGRAM" is left
                            out, and said so, where there is no such program
  <!-- prints -->           after a block that runs: what it prints to standard
                            output and standard error. "..." is any text in its
                            line, and, where it is all of a line, any lines
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap

SOURCE = r"(?:h|cc|c|wat|sh|py|bzl|proto|md|svg|bazel|BUILD)"


def documents(root):
    """Every Markdown file of the tree."""
    for path in sorted(root.rglob("*.md")):
        parts = path.relative_to(root).parts
        if not any(p.startswith((".", "bazel-")) or p == "node_modules" for p in parts):
            yield path


def prose(text):
    """The text without fenced blocks, with as many lines."""
    out, fence = [], None
    for line in text.split("\n"):
        mark = re.match(r" *(```+|~~~+)", line)
        if fence is None and mark:
            fence = mark.group(1)
            out.append("")
        elif fence is not None:
            if line.strip() == fence:
                fence = None
            out.append("")
        else:
            out.append(line)
    return "\n".join(out)


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    found, seen = set(), {}
    for line in prose(path.read_text()).split("\n"):
        heading = re.match(r"#{1,6} +(.*?) *#*$", line)
        if not heading:
            continue
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1))
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = seen.get(anchor, 0)
        seen[anchor] = count + 1
        found.add(anchor if count == 0 else f"{anchor}-{count}")
    return found


def blocks(text):
    """Yields (line number, mark, language, content) of marked fenced blocks."""
    pattern = re.compile(
        r"^<!-- (?P<mark>[^\n]*?) -->\n+(?P<fence>```+)(?P<language>\w*)\n"
        r"(?P<content>.*?)^(?P=fence)$", re.M | re.S)
    for match in pattern.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield line, match["mark"], match["language"], match["content"]


def check_link(root, path, target):
    if re.match(r"[a-z]+:", target):
        return None
    name, _, anchor = target.partition("#")
    file = (path.parent / name) if name else path
    if not file.exists():
        return f"link to {target}: there is no such file"
    if anchor and file.suffix == ".md" and anchor not in anchors(file):
        return f"link to {target}: {name or 'the document'} has no such heading"
    return None


def check_label(root, label):
    package, _, name = label[2:].partition(":")
    if "..." in label:
        folder = package.split("...")[0].strip("/")
        return None if (root / folder).is_dir() else f"{label}: no such folder"
    name = name or package.split("/")[-1]
    build = root / package / "BUILD.bazel"
    if not build.exists():
        return f"{label}: there is no {package}/BUILD.bazel"
    # A test that a macro makes of another has that one's name in it.
    if any(f'"{part}"' in build.read_text() for part in (name, name.removesuffix("_test"))):
        return None
    return f"{label}: {package}/BUILD.bazel has no target of this name"


def check_span(root, path, span):
    """What a `span` of code names must be there."""
    named = re.fullmatch(rf"((?:[\w.\-]+/)*[\w.\-]+\.{SOURCE}):(\w+)", span)
    if named:
        file = root / named[1]
        if not file.exists():
            return f"`{span}`: there is no {named[1]}"
        if not re.search(rf"\b{named[2]}\b", file.read_text()):
            return f"`{span}`: {named[1]} has no {named[2]}"
        return None
    if re.fullmatch(rf"(?:[\w.\-]+/)+[\w.\-]+\.{SOURCE}", span):
        if not any((base / span.removeprefix("firsttouch/")).exists() for base in (root, path.parent)):
            return f"`{span}`: there is no such file"
        return None
    if re.fullmatch(r"//[\w/.]*(?::[\w./\-]+)?", span) and span != "//":
        return check_label(root, span)
    return None


def links(root):
    problems = []
    for path in documents(root):
        in_docs = path.parent == root / "docs" or path.parent == root
        text = prose(path.read_text())
        without_code = re.sub(r"`[^`\n]*`", "", text)
        found = [check_link(root, path, target) for target in re.findall(
            r"\]\(<?([^)>\s]+)>?(?: \"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"",
            without_code) for target in target if target]
        if in_docs:
            found += [check_span(root, path, span) for span in re.findall(r"`([^`\n]+)`", text)]
            for command in re.findall(r"bazelw [^\n`]*", path.read_text()):
                found += [check_label(root, label) for label in re.findall(r"//[\w/.:\-]+", command)]
        problems += [f"{path.relative_to(root)}: {problem}" for problem in found if problem]
    return problems


def region(file, name):
    lines = file.read_text().split("\n")
    begin = [i for i, line in enumerate(lines) if re.fullmatch(rf"\W*{re.escape(name)}: begin", line)]
    end = [i for i, line in enumerate(lines) if re.fullmatch(rf"\W*{re.escape(name)}: end", line)]
    if len(begin) != 1 or len(end) != 1 or end[0] <= begin[0]:
        return None
    return textwrap.dedent("\n".join(lines[begin[0] + 1:end[0]]) + "\n")


def code(root):
    problems, count = [], 0
    for path in documents(root):
        for line, mark, _, content in blocks(path.read_text()):
            if not mark.startswith("code: "):
                continue
            count += 1
            where = f"{path.relative_to(root)}:{line}"
            file, _, name = mark.removeprefix("code: ").partition("#")
            if not (root / file).exists():
                problems.append(f"{where}: there is no {file}")
                continue
            expected = region(root / file, name)
            if expected is None:
                problems.append(f"{where}: {file} has no lines '{name}: begin' and '{name}: end', once each")
            elif expected != content:
                problems.append(f"{where}: not what {file} has:\n{textwrap.indent(expected, '    ')}")
    if count == 0:
        problems.append("no document has a block of code that is marked")
    return problems


def statistics(root):
    counters = (root / "control/counters.h").read_text()
    fields = re.findall(r"^  X\((\w+)\)", counters, re.M)
    header = (root / "service/stats.h").read_text()
    struct = header[header.index("struct ServiceStats "):header.index("  // The upper end")]
    fields += re.findall(r"^ *(?:uint64_t|std::array<[^;]*?>) (\w+)(?: = 0|\{\});", struct, re.M | re.S)
    rows = re.findall(r"^\| `(\w+)` \|", (root / "docs/statistics.md").read_text(), re.M)
    problems = [f"control/counters.h or service/stats.h has {field}, docs/statistics.md has no row for it"
                for field in fields if field not in rows]
    problems += [f"docs/statistics.md has a row {row}, no header has such a field"
                 for row in rows if row not in fields]
    if len(fields) < 10:
        problems.append(f"found only {fields}: the pattern is out of date")
    return problems


def errors(root):
    sources = ""
    for suffix in ("*.cc", "*.h"):
        for file in sorted(root.rglob(suffix)):
            if not any(p.startswith((".", "bazel-")) for p in file.relative_to(root).parts):
                sources += file.read_text()
    # Literals in a row are one, and quotes in them are quotes.
    sources = re.sub(r'"\s*\n\s*"', "", sources).replace('\\"', '"')
    text = (root / "docs/embedding.md").read_text()
    table = text[text.index("<!-- errors: begin -->"):text.index("<!-- errors: end -->")]
    texts = re.findall(r"^\| `([^`\n]+)` \|", table, re.M)
    problems = []
    for error in texts:
        for piece in error.split("…"):
            if len(piece.strip()) > 3 and piece.strip() not in sources:
                problems.append(f"docs/embedding.md: no source has the text '{piece.strip()}' of '{error}'")
    if len(texts) < 10:
        problems.append("docs/embedding.md: found no table of errors")
    return problems


def uses(root):
    """Which part of the product uses which others: folders, by the BUILD files. What
    only tests use is left out."""
    parts = {}
    for path in sorted(root.rglob("BUILD.bazel")):
        part = path.relative_to(root).parts[0]
        if part.startswith((".", "bazel")) or part in ("docs", "tests", "BUILD.bazel"):
            continue
        # One rule after the other, as buildifier has them.
        for rule in re.findall(r"^\w+\(\n(?:    .*\n|\n)*\)", path.read_text(), re.M):
            name = re.search(r'^    name = "([\w/]+)"', rule, re.M)
            kind = rule[:rule.index("(")]
            if name is None or "test" in kind or "test" in name.group(1) or "testonly = " in rule:
                continue
            # Not visibility, and not the rules' own files.
            rule = re.sub(r"^    visibility = (?:\[[^\]]*\]|.*),$", "", rule, flags=re.M)
            used = set(re.findall(r'"//(\w+)[/:"]', rule)) - {part, "bazel", "docs"}
            parts.setdefault(part, set()).update(used)
    return {part: used for part, used in parts.items() if used or part == "uffd"}


def parts(root):
    arrows = uses(root)

    def below(part):
        found = set()
        for used in arrows.get(part, ()):
            found |= {used} | below(used)
        return found

    # An arrow that others imply is not drawn.
    lines = [f"  {part} --> {used}" for part in sorted(arrows) for used in sorted(arrows[part])
             if not any(used in below(other) for other in arrows[part] - {used})]
    drawing = "graph TD\n" + "\n".join(lines) + "\n"
    text = (root / "docs/architecture.md").read_text()
    block = re.search(r"<!-- parts -->\n\n```mermaid\n(.*?)```", text, re.S)
    problems = []
    if block is None:
        problems.append("docs/architecture.md has no block of mermaid behind '<!-- parts -->'")
    elif block.group(1) != drawing:
        problems.append("docs/architecture.md: the BUILD files have these arrows instead:\n" + drawing)
    if "service" not in arrows or "uffd" not in below("service"):
        problems.append(f"found only {arrows} in the BUILD files: the pattern is out of date")
    return problems


# What was said before docs/glossary.md, and what to say. Names of formats (protobuf
# fields, the control block's counters, JSON) stay as they were, and are no words.
OLD_WORDS = {
    r"janitors?": "background reclaim",
    r"hand-overs?|handing over": "cycle, reset",
    r"granules?": "fault-around size, chunk",
    r"drift(?:s|ed|ing)?": "dirty-set churn",
    r"anchored|descriptor anchors?": "descriptor pin",
    r"strays": "poisoned pages",
    r"quiet threads?": "signal-masked thread",
    r"pages? of zeroes": "zero page",
    r"learning": "profiling lease",
    r"hot (?:pages?|sets?|planes?)": "retained pages",
    r"holders?": "lease, guest",
    r"crews?|scenes?": "thread pool, fixture",
}
# A lock's holder holds no slot; --granule-bytes is an older name of a flag.
OLD_WORDS_MEANT_OTHERWISE = r"lock's holder|--granule-bytes"


def words(root):
    pattern = re.compile("|".join(rf"(?P<w{i}>\b(?:{old})\b)" for i, old in enumerate(OLD_WORDS)), re.I)
    instead = list(OLD_WORDS.values())
    problems, lines = [], 0
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if (path.suffix not in (".h", ".cc", ".md") or not path.is_file() or path.name == "glossary.md"
                or any(p.startswith((".", "bazel-")) or p == "node_modules" for p in parts)):
            continue
        for number, line in enumerate(path.read_text().split("\n"), 1):
            lines += 1
            if path.suffix != ".md":  # Comments and literals; no identifiers.
                line = " ".join(re.findall(r'//.*|"(?:[^"\\]|\\.)*"', line))
            for match in pattern.finditer(re.sub(OLD_WORDS_MEANT_OTHERWISE, "", line)):
                say = instead[int(match.lastgroup[1:])]
                problems.append(f"{path.relative_to(root)}:{number}: '{match.group()}': "
                                f"docs/glossary.md says {say}")
    if lines < 1000:
        problems.append("found hardly a source: the pattern is out of date")
    return problems


def printed(expected, actual):
    """Whether `actual` is what `expected` describes."""
    pattern = ""
    for line in expected.split("\n")[:-1]:
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += "[^\n]*".join(re.escape(part) for part in line.split("...")) + "\n"
    return re.fullmatch(pattern, actual) is not None


BAZELW = """#!/usr/bin/env bash
# Stands for ../bazelw where a test runs a document's commands: what they run is
# built already.
set -euo pipefail
[[ "$1" == run ]] || { echo "bazelw $1: only 'run' can be tried here" >&2; exit 1; }
shift
while [[ "$1" == -* ]]; do [[ "$1" == -c ]] && shift; shift; done
label="${1#//}"; shift
[[ "${1:-}" != -- ]] || shift
exec "./bazel-bin/${label/://}" "$@"
"""


def commands(root):
    problems, count = [], 0
    built = pathlib.Path(os.environ["TEST_SRCDIR"]) / os.environ["TEST_WORKSPACE"]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        (scratch / "bazel-bin").symlink_to(built)
        (scratch / "bazelw").write_text(BAZELW)
        (scratch / "bazelw").chmod(0o755)
        doctor = subprocess.run(
            [scratch / "bazel-bin/tools/doctor"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, text=True, check=False)
        if doctor.returncode == 2:
            print("SKIPPED: this machine has no userfaultfd for us:\n" + doctor.stdout)
            return []
        for path in documents(root):
            output = None
            for line, mark, _, content in blocks(path.read_text()):
                where = f"{path.relative_to(root)}:{line}"
                if mark == "prints":
                    if output is not None and not printed(content, output):
                        problems.append(f"{where}: this was printed instead:\n{textwrap.indent(output, '    ')}")
                    output = None
                    continue
                match = re.fullmatch(r"runs(?:, needs (\S+))?", mark)
                if not match:
                    continue
                output = None
                if match[1] and not shutil.which(match[1]):
                    print(f"{where}: not run, there is no {match[1]} here")
                    continue
                count += 1
                try:
                    run = subprocess.run(
                        ["bash", "-euo", "pipefail", "-c", content], cwd=scratch,
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, errors="replace", timeout=240)
                except subprocess.TimeoutExpired:
                    problems.append(f"{where}: still running after four minutes")
                    continue
                output = run.stdout
                print(f"{where}: exit code {run.returncode}")
                if run.returncode != 0:
                    problems.append(f"{where}: exit code {run.returncode}:\n{textwrap.indent(output, '    ')}")
                    output = None
    if count == 0:
        problems.append("no document has a block of commands that was run")
    return problems


def main():
    root = pathlib.Path(sys.argv[1])
    checks = {check.__name__: check for check in (links, code, statistics, errors, parts, words, commands)}
    problems = checks[sys.argv[2]](root)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
