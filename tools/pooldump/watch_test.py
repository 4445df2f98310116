#!/usr/bin/env python3
"""`pooldump live --watch` in a pseudo-terminal, looking at a real process.

  watch_test.py POOLDUMP POOL_MAKER

Waits for what is to appear; the time limit is only against a program that hangs.
"""

import csv
import fcntl
import json
import os
import pty
import pwd
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest

POOLDUMP, POOL_MAKER = map(os.path.abspath, sys.argv[1:3])
TIME_LIMIT = 30
# Without userfaultfd, so that it runs everywhere.
RECIPE = """
pools {
  config { name: "tenants" instances: 40 max_memory_bytes: "64KiB"
           guard_after_bytes: "64KiB" supply: "mappings-drop" }
  tenants { size_bytes: "64KiB" write_pages: 4 }
  tenants { size_bytes: "64KiB" write_pages: 2 }
}
"""


class Process:
    def __init__(self):
        self.popen = subprocess.Popen([POOL_MAKER, RECIPE, "busy"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        _, self.pid, base = self.popen.stdout.readline().split()
        self.base = int(base, 16)

    def end(self):
        if not self.popen.stdin.closed:
            self.popen.stdin.close()
        self.popen.stdout.close()
        self.popen.wait(TIME_LIMIT)


class Screen:
    """pooldump on a terminal of its own."""

    def __init__(self, words, rows=30, columns=160, term="xterm", **variables):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            os.execve(POOLDUMP, ["pooldump"] + words,
                      {"TERM": term, "LC_ALL": "C.UTF-8", **variables})

    def expect(self, text):
        """Waits for the text, and forgets everything up to it."""
        limit = time.monotonic() + TIME_LIMIT
        while True:
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-B0]|\x1b[=>]", "|", self.text)
            if text in self.text or text in plain:
                self.text = ""
                return
            if not self.read(limit):
                raise AssertionError(f"{text!r} did not appear in {self.text!r}")

    def read(self, limit):
        if not select.select([self.fd], [], [], max(0, limit - time.monotonic()))[0]:
            return False
        try:
            got = os.read(self.fd, 65536)
        except OSError:  # The other end is closed.
            return False
        self.text += got.decode(errors="replace")
        return bool(got)

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def leave(self):
        """The exit code; the terminal's own screen must be back."""
        limit = time.monotonic() + TIME_LIMIT
        while self.read(limit):
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


class LogTest(unittest.TestCase):
    def test_locates_addresses_line_by_line(self):
        """As behind tail -f: a line is answered before the next one comes."""
        popen = subprocess.Popen(
            [POOLDUMP, "locate", "--instances=2", "--memory-bytes=64KiB",
             "--base=0x7f0000000000", "-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(popen.stdout.close)
        for offset in (0x1004, 0x2004):
            popen.stdin.write(f"fault at {0x7f0000000000 + offset:#x}\n")
            popen.stdin.flush()
            self.assertEqual(popen.stdout.readline(),
                             f"fault at {0x7f0000000000 + offset:#x}\n")
            self.assertIn(f"offset {offset} ", popen.stdout.readline())
        self.assertIsNone(popen.poll())
        popen.stdin.close()
        self.assertEqual(popen.wait(TIME_LIMIT), 0)


    def test_looks_at_the_process_anew_after_it_waited(self):
        process = Process()
        self.addCleanup(process.end)
        popen = subprocess.Popen(
            [POOLDUMP, "locate", process.pid], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(popen.stdout.close)
        self.addCleanup(popen.stderr.close)
        popen.stdin.write(f"{process.base:#x}\n")
        popen.stdout.readline()
        self.assertIn("pool tenants, slot 0,", popen.stdout.readline())
        process.end()
        popen.stdin.write(f"{process.base:#x}\n")
        popen.stdin.close()
        self.assertEqual(popen.stderr.read(),
                         f"pooldump: process {process.pid} has ended\n")
        self.assertEqual(popen.wait(TIME_LIMIT), 2)


class BatchTest(unittest.TestCase):
    def setUp(self):
        self.process = Process()
        self.addCleanup(self.process.end)

    def batch(self, *words):
        popen = subprocess.Popen([POOLDUMP, "live", self.process.pid, "--interval=0.1", *words],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(popen.stdout.close)
        self.addCleanup(popen.stderr.close)
        return popen

    def test_each_look_comes_at_once_and_goes_on_until_the_process_ends(self):
        popen = self.batch("--format=csv", "--columns=slot,handovers/s", "--pool=tenants")
        self.assertEqual(popen.stdout.readline(), "time,pool,pool-number,slot,handovers/s\n")
        # The third slot is handed on all the time.
        times, rates = set(), []
        while len(times) < 3:
            time_, _, _, slot, rate = popen.stdout.readline().strip().split(",")
            times.add(time_)
            if slot == "2":
                rates.append(float(rate))
        self.assertGreater(max(rates), 0)
        self.assertIsNone(popen.poll())
        self.process.end()
        _, error = popen.communicate(timeout=TIME_LIMIT)
        self.assertEqual(popen.returncode, 2)
        self.assertIn(f"process {self.process.pid} has ended", error)

    def test_json_is_a_line_for_each_look(self):
        popen = self.batch("--format=json", "--count=3")
        out, _ = popen.communicate(timeout=TIME_LIMIT)
        self.assertEqual(popen.returncode, 0)
        looks = [json.loads(line) for line in out.splitlines()]
        self.assertEqual(len(looks), 3)
        for look in looks:
            self.assertGreater(look["live"]["pools"][0]["totals"]["rates"]["seconds"], 0)

    def test_a_full_disk_ends_it(self):
        done = subprocess.run(
            [POOLDUMP, "live", self.process.pid, "--interval=0.1"],
            stdout=open("/dev/full", "wb"), stderr=subprocess.PIPE, timeout=TIME_LIMIT,
            text=True, check=False)
        self.assertEqual(done.returncode, 74)
        self.assertIn("No space left on device", done.stderr)


class PsTest(unittest.TestCase):
    def row(self, pid, *words):
        out = subprocess.run([POOLDUMP, "ps", "--format=csv", *words], check=True,
                             stdout=subprocess.PIPE, timeout=TIME_LIMIT, text=True).stdout
        rows = list(csv.DictReader(out.splitlines()))
        found = [row for row in rows if row["pid"] == pid]
        return found[0] if found else None

    def test_lists_a_process_with_pools_while_it_lives(self):
        process = Process()
        try:
            row = self.row(process.pid, "--interval=0.1", "--filter=pool_maker")
            self.assertEqual(row["command"], "pool_maker")
            self.assertEqual(row["user"], pwd.getpwuid(os.geteuid()).pw_name)
            self.assertEqual((row["pools"], row["slots"], row["runs"]), ("1", "40", "yes"))
            self.assertIn(row["held"], ("2", "3"))
            self.assertEqual((row["traps"], row["traps/s"]), ("0", "0"))
            self.assertEqual(self.row(process.pid, "--interval=0")["traps/s"], "")
            self.assertIsNone(self.row(process.pid, "--interval=0", "--filter=nobody's"))
            os.kill(int(process.pid), signal.SIGSTOP)
            self.assertEqual(self.row(process.pid, "--interval=0")["runs"], "stopped by a signal")
            os.kill(int(process.pid), signal.SIGCONT)
        finally:
            process.end()
        self.assertIsNone(self.row(process.pid, "--interval=0"))

    def test_a_process_that_inherited_a_pool_is_none_of_them(self):
        process = Process()
        self.addCleanup(process.end)
        # Opened as pooldump does it: it has the descriptor, and not the pool.
        folder = f"/proc/{process.pid}/fd"
        name = next(n for n in os.listdir(folder)
                    if "firsttouch" in os.readlink(os.path.join(folder, n)))
        with open(os.path.join(folder, name), "rb"):
            self.assertIsNone(self.row(str(os.getpid()), "--interval=0"))


class TerminalTest(unittest.TestCase):
    def test_live_fits_the_terminal_and_a_file_has_all_columns(self):
        process = Process()
        self.addCleanup(process.end)
        screen = Screen(["live", process.pid], rows=24, columns=80)
        self.assertEqual(screen.leave(), 0)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.text)
        self.assertIn("left out for want of room:", plain)
        self.assertLessEqual(max(map(len, plain.splitlines())), 80)
        self.assertIn("\x1b[", screen.text)
        out = subprocess.run([POOLDUMP, "live", process.pid], check=True, stdout=subprocess.PIPE,
                             timeout=TIME_LIMIT, text=True).stdout
        self.assertNotIn("left out", out)
        self.assertNotIn("\x1b", out)
        self.assertRegex(out, r"binds  calls\n")


class WatchTest(unittest.TestCase):
    def setUp(self):
        self.process = Process()
        self.addCleanup(self.process.end)

    def screen(self, *words, **kwargs):
        return Screen(["live", self.process.pid, "--watch", "--interval=0.1", *words], **kwargs)

    def test_shows_slots_and_rates_and_quits(self):
        screen = self.screen()
        screen.expect("pool tenants: 40 slots")
        screen.expect("held")
        screen.type("q")
        self.assertEqual(screen.leave(), 0)
        # The alternate screen was left, and the cursor is shown again.
        self.assertIn("\x1b[?1049l", screen.text)
        self.assertRegex(screen.text, r"\x1b\[\?(12;|12l\x1b\[\?)?25h")

    def test_sorts_and_filters(self):
        screen = self.screen()
        screen.expect("SLOT")
        screen.type(">>>>>")
        screen.expect("PRIVATE v")
        screen.type("/tenants/1$\r")
        screen.expect("filter: ")
        screen.type("/(\r")
        screen.expect("missing )")
        screen.type("\x1b")
        screen.type("h")
        screen.expect("any key goes back")
        screen.type("q")
        self.assertEqual(screen.leave(), 0)

    def test_ends_by_signals_with_the_terminal_as_it_was(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            screen = self.screen()
            screen.expect("pool tenants")
            os.kill(screen.pid, number)
            self.assertEqual(screen.leave(), 0, number)
            self.assertIn("\x1b[?1049l", screen.text)

    def test_no_color_has_no_colour(self):
        for variables, colored in (({}, True), ({"NO_COLOR": "1"}, False)):
            screen = self.screen(rows=24, columns=80, **variables)
            screen.expect("faults/s")
            screen.type("q")
            self.assertEqual(screen.leave(), 0)
            text = screen.text
            screen = Screen(["live", self.process.pid], **variables)
            screen.leave()
            self.assertEqual("\x1b[1m" in screen.text, colored)
            self.assertNotIn("\x1b[31m", text + screen.text)

    def test_arrows_show_further_columns(self):
        screen = self.screen(rows=24, columns=60)
        screen.expect("faults/s")
        screen.type("\x1bOC" * 30)
        screen.expect("calls")
        screen.type("q")
        self.assertEqual(screen.leave(), 0)

    def test_control_c(self):
        screen = self.screen()
        screen.expect("pool tenants")
        screen.type("\x03")
        self.assertEqual(screen.leave(), 0)

    def test_survives_changes_of_size(self):
        screen = self.screen()
        screen.expect("pool tenants")
        for rows, columns in ((5, 30), (1, 1), (2, 200), (50, 100)):
            screen.resize(rows, columns)
        # Painted anew, all of it.
        screen.expect("pool tenants")
        screen.type("q")
        self.assertEqual(screen.leave(), 0)

    def test_survives_the_end_of_the_process(self):
        screen = self.screen()
        screen.expect("pool tenants")
        self.process.end()
        screen.expect("has ended; q quits")
        screen.type("q")
        self.assertEqual(screen.leave(), 0)

    def test_a_terminal_that_nobody_knows(self):
        screen = self.screen(term="no-such-terminal")
        self.assertEqual(screen.leave(), 2)
        self.assertIn("ncurses does not know the terminal \"no-such-terminal\"", screen.text)

    def test_no_such_process(self):
        screen = Screen(["live", "4194305", "--watch"])
        self.assertEqual(screen.leave(), 2)
        self.assertIn("there is no process 4194305", screen.text)
        self.assertNotIn("\x1b[?1049h", screen.text)


unittest.main(argv=sys.argv[:1])
