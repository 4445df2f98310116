#!/usr/bin/env python3
"""Runs a program as each case says, and compares what it prints.

  run.py [--update] PROGRAM CASE...

A case is a file:

  # What it protects.
  before: imagetool build guest.wasm guest.ftimg
  command: imagetool info guest.ftimg
  exit: 1
  hide: [0-9.]+ KiB on disk
  --- wasm guest.wasm
  (module (memory 1))
  --- file list.textproto
  --- stdin
  --- stdout
  --- stderr

`before` and `command` are lines for a shell, in a folder of their own, with the
program on the PATH. What `before` prints is not looked at, but it must succeed;
there may be several. What matches `hide` (there may be several) is printed as
"...". Parts are files to begin with (in WebAssembly's text format: "wasm", turned
into a module by wat2wasm), what the program gets to read, and what it prints.
All but the command may be left out; "exit: 0" is what is meant then.

With --update, cases get what was printed: look at the difference.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from case import Case, as_lines

TIME_LIMIT = 60  # Seconds; only against a program that hangs.
KEYS = {"before", "command", "exit", "hide"}


def shell(line, folder, programs, stdin=""):
    return subprocess.run(
        ["/bin/bash", "-uo", "pipefail", "-c", line], cwd=folder, input=stdin.encode(),
        capture_output=True, check=False, timeout=TIME_LIMIT,
        # 2023-11-14 22:13:20 UTC is when everything is built.
        env={"PATH": f"{programs}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb",
             "SOURCE_DATE_EPOCH": "1700000000"})


def shown(case, stream):
    """As it stands in the case's file."""
    text = stream.decode(errors="replace")
    for pattern in case.all("hide"):
        text = re.sub(pattern, "...", text)
    return as_lines(text)


def run(program, case):
    """What is printed (out, err, exit code)."""
    with tempfile.TemporaryDirectory(prefix="golden") as name:
        folder, programs = pathlib.Path(name) / "work", pathlib.Path(name) / "bin"
        folder.mkdir()
        programs.mkdir()
        (programs / pathlib.Path(program).name).symlink_to(program)
        for part in case.parts:
            kind, _, file = part.partition(" ")
            if kind == "file":
                (folder / file).write_text(case.text(part))
            elif kind == "wasm":
                made = subprocess.run(
                    ["wat2wasm", "--enable-all", "-", "-o", folder / file],
                    input=case.text(part).encode(), capture_output=True, check=False)
                if made.returncode != 0:
                    raise ValueError(f"{case.path}: {part}: {made.stderr.decode()}")
            elif part not in ("stdin", "stdout", "stderr"):
                raise ValueError(f"{case.path}: no such part: {part}")
        for line in case.all("before"):
            done = shell(line, folder, programs)
            if done.returncode != 0:
                raise ValueError(f"{case.path}: before: {line}: exit code {done.returncode}, "
                                 f"{done.stderr.decode(errors='replace')}")
        done = shell(case.first("command"), folder, programs, case.text("stdin"))
        return shown(case, done.stdout), shown(case, done.stderr), done.returncode


def main():
    words = sys.argv[1:]
    update = words[:1] == ["--update"]
    program, *cases = words[1:] if update else words
    program = os.path.abspath(program)
    if not cases:
        sys.exit("no cases")
    bad = 0
    all_cases = [Case(path, KEYS) for path in map(pathlib.Path, sorted(cases))]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda case: run(program, case), all_cases)
    for case, (out, err, code) in zip(all_cases, results):
        if update:
            case.write(out, err, code)
            continue
        wrong = case.differences(out, err, code)
        if wrong:
            bad += 1
            print(f"FAILED {case.path}: {case.first('command')}\n" + "\n".join(wrong))
    print(f"{len(cases)} cases, {bad} failed")
    sys.exit(1 if bad else 0)


main()
