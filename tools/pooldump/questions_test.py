#!/usr/bin/env python3
"""Runs the command of each question of docs/pooldump.md on a process made for it.

  questions_test.py POOLDUMP POOL_MAKER

The table there says what to look for; this says, by the question, what process to
make and what then has to be seen. A row without such a process fails, and so does a
process without a row.
"""

import os
import pathlib
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import unittest

POOLDUMP, POOL_MAKER = map(os.path.abspath, sys.argv[1:3])
DOCUMENT = pathlib.Path("docs/pooldump.md")
TIME_LIMIT = 60
SKIPPED = 77


def pool(tenants, **fields):
    """A recipe of one pool, without userfaultfd unless `fields` say otherwise."""
    config = {"name": "tenants", "instances": 8, "max_memory_bytes": "1MiB",
              "guard_after_bytes": "1MiB", "supply": "mappings-drop"}
    config.update((name, value) for name, value in fields.items() if name in config)
    text = " ".join(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}"
                    for name, value in config.items())
    rest = "".join(f'{name}: "{value}"\n' for name, value in fields.items() if name not in config)
    return ('images { name: "small.wasm" pages: 4 }\nimages { name: "large.wasm" pages: 64 }\n'
            f"pools {{\n config {{ {text} }}\n {rest} {tenants} }}\n")


# By the question: the recipe, and what the command has to print.
QUESTIONS = {
    "Which process is it?": (
        pool('tenants { size_bytes: "64KiB" write_pages: 3 memories: 2 }'),
        r"(?m)^ *{PID} +\S+ +pool_maker +1 +8 +2 "),
    "Will such a pool fit on this machine?": (None, r"(?m)^fits here +(yes|no)$"),
    "Memory grows: which slots have it?": (
        pool('tenants { size_bytes: "64KiB" write_pages: 1 }'
             'tenants { image: "large.wasm" size_bytes: "256KiB" write_pages: 40 }'),
        r"(?s) private v .*?\n +1  held  +large\.wasm .*\n +0  held "),
    "What grew since then?": (
        pool('tenants { size_bytes: "256KiB" write_pages: 1 }'
             'tenants { size_bytes: "64KiB" write_pages: 1 }'),
        r"(?s)1 of 8 slots.*\n +0 +- +held +\+8 KiB "),
    "Is more kept by idle slots than I allow?": (
        pool('tenants { size_bytes: "64KiB" write_pages: 6 leaves: true }',
             supply="userfaultfd", resident_budget_bytes="1MiB"),
        r"(?m)^budget +28 KiB kept; 1 MiB for"),
    "Who holds the slots?": (
        pool('tenants { image: "small.wasm" size_bytes: "64KiB" memories: 2 }'
             'tenants { image: "large.wasm" size_bytes: "256KiB" memories: 6 }'),
        r"(?s)slots +8: 8 held\n.*\nsmall\.wasm [^\n]* 2     2 .*\nlarge\.wasm [^\n]* 6     6 "),
    "A guest traps: which one?": (
        pool('tenants { size_bytes: "64KiB" }'
             'tenants { image: "small.wasm" size_bytes: "64KiB" traps: 3 }'),
        r"(?s) traps/s v .*\n +1  held .* small\.wasm .* 3 "),
    "What did it touch?": (
        pool('tenants { image: "small.wasm" size_bytes: "64KiB" }'),
        r"slot 0, offset 65544 \(0x10008\), page 16.*: out of bounds, above the size of 65536"),
    "Start is slow: does it settle?": (
        pool('tenants { image: "small.wasm" size_bytes: "64KiB" write_pages: 1 times: 4 leaves: true }'
             'tenants { image: "large.wasm" size_bytes: "256KiB" write_pages: 1 times: 4 leaves: true }'
             'tenants { image: "small.wasm" size_bytes: "64KiB" write_pages: 1 times: 4 leaves: true }',
             instances=1),
        r"(?m)^ +0 .* 12 +3 +\d+ +0\.0 +0\.0$|^ +0 .* 12 +3 +\d+ +- +0\.0$"),
    "Which pages does a guest change?": (
        pool('tenants { image: "small.wasm" size_bytes: "64KiB" write_pages: 3 }',
             supply="userfaultfd"),
        r"dirty: 3\b"),
    "How did it go last night?": (
        pool('tenants { size_bytes: "64KiB" }'),
        r"^time,pool,pool-number,slot,state,private,traps/s,handovers/s\r\n(\S+Z,tenants,1,0,held,.*\r\n)"),
    "It crashed: why?": (
        pool('tenants { image: "small.wasm" size_bytes: "64KiB" }') + "crash_at_offset: 70000",
        r"ended by +SIG(BUS|SEGV) in thread {PID} at 0x\w+: pool tenants, slot\s+0, offset\s+70000"),
}


def rows():
    """(question, command) of each row of the table."""
    text = DOCUMENT.read_text()
    table = text[text.index("<!-- questions: begin -->"):text.index("<!-- questions: end -->")]
    return [(cells[0], re.fullmatch(r"`pooldump (.*)`", cells[1])[1]) for cells in
            ([cell.strip() for cell in line.strip("|").split(" | ")]
             for line in table.splitlines()[4:] if line.startswith("|"))]


class Process:
    def __init__(self, recipe, folder, crashes):
        limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        self.popen = subprocess.Popen(
            [POOL_MAKER, recipe], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, bufsize=1,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_CORE, (limit if crashes else 0, limit)))
        ready = self.popen.stdout.readline().split()
        if not ready:
            error = self.popen.stderr.read()
            code = self.popen.wait()
            self.end()
            if code == SKIPPED:
                raise unittest.SkipTest(error.strip())
            raise AssertionError(f"pool_maker ended with {code}: {error}")
        self.pid, self.base = ready[1], int(ready[2], 16)

    def grow(self, pages):
        for _ in range(pages):
            self.popen.stdin.write("g")
            self.popen.stdin.flush()
            assert self.popen.stdout.readline() == "grown\n"

    def end(self):
        self.popen.stdin.close()
        self.popen.wait(TIME_LIMIT)
        self.popen.stdout.close()
        self.popen.stderr.close()


def pooldump(words, folder, out=None):
    done = subprocess.run([POOLDUMP, *words], cwd=folder, stdin=subprocess.DEVNULL,
                          stdout=out or subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=TIME_LIMIT, check=False)
    if done.returncode not in (0, 1):
        raise AssertionError(f"pooldump {' '.join(words)}: {done.stderr.decode()}")
    return "" if out else done.stdout.decode()


class QuestionsTest(unittest.TestCase):
    maxDiff = None

    def test_each_question_has_a_process_and_each_process_a_question(self):
        self.assertEqual([question for question, _ in rows()], list(QUESTIONS))

    def answer(self, question, command):
        recipe, expected = QUESTIONS[question]
        with tempfile.TemporaryDirectory() as folder:
            process = None
            crashes = recipe is not None and "crash_at_offset" in recipe
            if crashes and pathlib.Path("/proc/sys/kernel/core_pattern").read_text()[0] == "|":
                self.skipTest("core dumps go to a program (kernel.core_pattern)")
            if recipe is not None:
                process = Process(recipe, folder, crashes)
                self.addCleanup(process.end)
                command = re.sub(r"\bPID\b", process.pid, command)
                command = command.replace("ADDRESS", hex(process.base + 65536 + 8))
                expected = expected.replace("{PID}", process.pid)
            # Nobody waits a minute for a test.
            command = re.sub(r"--interval=\S+", "--interval=0.1", command)
            command = re.sub(r"--count=\S+", "--count=2", command)
            if "before.pb" in command:
                for name in ("before.pb", "after.pb"):
                    with open(os.path.join(folder, name), "wb") as out:
                        pooldump(["live", process.pid, "--format=proto"], folder, out)
                    process.grow(2)
            if crashes:
                process.popen.wait(TIME_LIMIT)
                cores = sorted(pathlib.Path(folder).glob("core*"))
                if not cores:
                    self.skipTest("no core dump was left in the working folder")
                cores[0].rename(pathlib.Path(folder) / "core")
            self.assertRegex(pooldump(shlex.split(command), folder), expected)

    def test_each_command_shows_what_to_look_for(self):
        for question, command in rows():
            if question not in QUESTIONS:
                continue
            with self.subTest(question):
                self.answer(question, command)


unittest.main(argv=sys.argv[:1])
