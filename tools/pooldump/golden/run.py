#!/usr/bin/env python3
"""Runs pooldump as each case says, and compares what it prints.

  run.py [--update] POOLDUMP POOL_MAKER CASE...

A case is a file:

  # What it protects.
  command: layout --machine=machine.textproto --instances=3
  exit: 1
  --- recipe
  what ../testing/pool_maker makes first (recipe.proto, in text format)
  --- file machine.textproto
  a file in the folder where pooldump runs
  --- stdin
  --- stdout
  --- stderr

All parts but the command may be left out; "exit: 0" is what is meant then. In
command and stdin, {PID} is the process of the recipe, {GUEST}, {GUEST2} those
of its guests, and {BASE}, {BASE2} where its pools begin, and then the memories
of its guests; {BASE+0x1000} is counted on from there. In what pooldump prints,
the same stands in place of the numbers, which are others each time. "..." in
what is expected is any text in its line.

Further lines in front of the first part:

  user: nobody     run pooldump as this user; needs root
  core: 3000       the recipe crashes: its core dump is the file "core", cut to so
                   many bytes (all: not cut)

A case whose needs the machine does not meet is left out, and named. With
--update, cases get what pooldump printed: look at the difference.
"""

import os
import pathlib
import pwd
import re
import resource
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tests/golden"))

from case import Case, as_lines

TIME_LIMIT = 60  # Seconds; only against a program that hangs.
KEYS = {"command", "exit", "user", "core"}


class Skip(Exception):
    pass


class Maker:
    """The process of a recipe; none without one."""

    def __init__(self, program, case, folder):
        self.process, self.pid, self.bases, self.guests = None, None, [], []
        if "recipe" not in case.parts:
            return
        crashes = bool(case.all("core"))
        limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if crashes and pathlib.Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
            raise Skip("core dumps go to a program (kernel.core_pattern)")
        if crashes and limit == 0:
            raise Skip("core dumps are forbidden (RLIMIT_CORE)")
        self.process = subprocess.Popen(
            [program, case.text("recipe")], cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_CORE, (limit if crashes else 0, limit)))
        ready = self.process.stdout.readline().split()
        if not ready:
            error = self.process.stderr.read()
            code = self.process.wait()
            if code == 77:
                raise Skip(error.strip())
            raise ValueError(f"pool_maker ended with {code}: {error}")
        self.pid = int(ready[1])
        self.bases = [int(word, 16) for word in ready[2:] if word.startswith("0x")]
        self.guests = [int(word[4:]) for word in ready[2:] if word.startswith("pid=")]
        if crashes:
            self.process.communicate(timeout=TIME_LIMIT)
            cores = sorted(folder.glob("core*"))
            if not cores:
                raise Skip("no core dump was left in the working folder")
            cores[0].rename(folder / "core")
            if case.first("core") != "all":
                os.truncate(folder / "core", int(case.first("core")))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(TIME_LIMIT)

    def put_in(self, text):
        """{PID} and {BASE} as numbers."""
        def number(match):
            if match.group(1) == "PID":
                return str(self.pid)
            if match.group(1).startswith("GUEST"):
                return str(self.guests[int(match.group(1)[5:] or 1) - 1])
            pool = int(match.group(2) or 1) - 1
            return hex(self.bases[pool] + int(match.group(3) or "0", 0))
        return re.sub(r"\{(PID|GUEST\d*|BASE(\d*)(\+0x[0-9a-f]+|-0x[0-9a-f]+)?)\}", number, text)

    def take_out(self, text):
        """Numbers as {PID} and {BASE}."""
        def name(value):
            for i, base in enumerate(self.bases):
                if 0 <= value - base < 1 << 32:
                    pool = "BASE" + ("" if i == 0 else str(i + 1))
                    return "{" + pool + (f"+{hex(value - base)}" if value > base else "") + "}"
            return None
        def hexadecimal(match):
            return name(int(match.group(0), 16)) or match.group(0)
        text = re.sub(r"\b0x[0-9a-f]{9,16}\b", hexadecimal, text)
        # Addresses in json and textproto.
        text = re.sub(r"\b[0-9]{12,20}\b", lambda m: name(int(m.group(0))) or m.group(0), text)
        for i, guest in enumerate(self.guests):
            text = re.sub(rf"\b{guest}\b",
                          "{GUEST" + ("" if i == 0 else str(i + 1)) + "}", text)
        if self.pid is not None:
            text = re.sub(rf"\b{self.pid}\b", "{PID}", text)
        return text


def run(pooldump, maker_program, case):
    """What pooldump printed (out, err, exit code), with names for numbers."""
    user = case.first("user")
    if user and os.geteuid() != 0:
        raise Skip(f"only root can be {user}")
    if user and not all(folder.stat().st_mode & 0o001 for folder in
                        pathlib.Path(pooldump).resolve().parents):
        raise Skip(f"{user} may not read the program")
    with tempfile.TemporaryDirectory(prefix="pooldump") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        for part in case.parts:
            if part.startswith("file "):
                (folder / part[5:].strip()).write_text(case.text(part))
        with Maker(maker_program, case, folder) as maker:
            def become():
                entry = pwd.getpwnam(user)
                os.setgroups([])
                os.setgid(entry.pw_gid)
                os.setuid(entry.pw_uid)
            words = maker.put_in(case.first("command"))
            script = 'set -f; eval "set -- $COMMAND"; exec "$PROGRAM" "$@"'
            done = subprocess.run(
                ["/bin/sh", "-c", script], cwd=folder, timeout=TIME_LIMIT,
                input=maker.put_in(case.text("stdin")).encode(),
                capture_output=True, check=False,
                preexec_fn=become if user else None,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb",
                     "COMMAND": words, "PROGRAM": pooldump})
            out, err = (maker.take_out(stream.decode(errors="replace"))
                        for stream in (done.stdout, done.stderr))
            return as_lines(out), as_lines(err), done.returncode


def matches(expected, text):
    """Whether `text` is what is expected, where "..." is anything in a line."""
    parts = [re.escape(part) for part in expected.split("...")]
    return re.fullmatch("[^\n]*".join(parts), text) is not None


def main():
    words = sys.argv[1:]
    update = words[:1] == ["--update"]
    pooldump, maker, *cases = words[1:] if update else words
    pooldump, maker = (os.path.abspath(p) for p in (pooldump, maker))
    if not cases:
        sys.exit("no cases")
    bad = 0
    for path in map(pathlib.Path, sorted(cases)):
        case = Case(path, KEYS)
        try:
            out, err, code = run(pooldump, maker, case)
        except Skip as why:
            print(f"SKIPPED {path.name}: {why}")
            continue
        if update:
            # A case keeps its "..." where they are still right.
            out, err = (case.text(part) if matches(case.text(part), text) else text
                        for part, text in (("stdout", out), ("stderr", err)))
            case.write(out, err, code)
            continue
        wrong = case.differences(out, err, code, matches)
        if wrong:
            bad += 1
            print(f"FAILED {path}: pooldump {case.first('command')}\n" + "\n".join(wrong))
    print(f"{len(cases)} cases, {bad} failed")
    sys.exit(1 if bad else 0)


main()
