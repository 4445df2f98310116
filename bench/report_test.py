"""That the report's rows take place, are right, and are held to the goals. Run by
report_test.sh. No time is asserted."""

import json
import pathlib
import subprocess
import unittest

import report
from report_rows import DONTNEED, LIMIT, MEMCPY, OURS, SCAN, Row, all_rows

MINE = OURS["C++"]
ROWS = ("recycle-same-k4,recycle-mixed,4-MiB-others-k4,"
        "whole-pages-same-k16,image-k1,first-touch,trap,lookup,growth-by-64,"
        "threads-same-k16,many-images,slots-64-k4,SQLite-same,"
        "pool-of-64,from-a-file,image-files,what-bounds-it")


def run(*arguments):
    return subprocess.run(["bench/report", "--programs=bench/peers", *arguments],
                          capture_output=True, text=True, check=False)


class Rows(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.ran = run("--quick", "--format=json", f"--rows={ROWS}")
        cls.report = json.loads(cls.ran.stdout)

    def rows(self, section):
        return [r for r in self.report["rows"] if r["section"] == section]

    def test_all_contenders_do_the_same_work_and_pass_on_a_clean_memory(self):
        self.assertEqual(self.ran.returncode, 0, self.ran.stderr)
        sections = {row.section for row in all_rows()}
        self.assertEqual({r["section"] for r in self.report["rows"]},
                         sections - {"many slots", "more than the caches hold"})
        for row in self.report["rows"]:
            self.assertIn(MINE if row["section"] != "what bounds it" else "the machine",
                          row["contenders"])
            for name, end in row["contenders"].items():
                failed = end.get("failed", "")
                if any(m in failed for m in ("PAGEMAP_SCAN", "not supported", "page cache")):
                    continue
                self.assertEqual(failed, "", f"{row['title']}: {name}")
                self.assertGreaterEqual(end["median"], 0)

    def test_what_can_be_counted_is(self):
        found = 0
        for row in self.rows("recycle"):
            if not row["title"].startswith("same"):
                continue
            for name, calls, faults in ((MINE, 0, 0), (LIMIT, 0, 0), (DONTNEED, 1, 4)):
                end = row["contenders"][name]
                self.assertAlmostEqual(end["faults"], faults, delta=0.5, msg=name)
                if "calls" in end:
                    self.assertEqual((end["calls"], end["signals"]), (calls, 0), name)
                found += 1
        self.assertEqual(found, 3)
        for row in self.rows("idle slots"):
            if row["title"].startswith("64"):
                kib = row["contenders"][MINE]["median"]
                self.assertTrue(4 * 4 <= kib <= 4 * 4 + 12, kib)

    def test_threads_take_turns_and_have_their_parts_told(self):
        rows = self.rows("threads")
        self.assertEqual([r["title"] for r in rows],
                         ["same, k=16, 1 thread", "same, k=16, 2 threads",
                          "same, k=16, 4 threads", "same, k=16, 8 threads"])
        for row in rows:
            end = row["contenders"][MINE]
            self.assertIn("acquire_p999_ns", end["answers"][0])
            self.assertGreater(end["beside_second"], 0)

    def test_the_goals_that_these_rows_have_are_told(self):
        told = {(g["row"].split(":")[0], g["what"]) for g in self.report["goals"]
                if g["what"] not in ("calls", "signals")}
        if not any(SCAN in r["contenders"] and "median" in r["contenders"][SCAN]
                   for r in self.rows("recycle")):
            self.skipTest("this kernel has no PAGEMAP_SCAN")
        if "TLB:" not in pathlib.Path("/proc/interrupts").read_text(encoding="utf-8"):
            self.skipTest("this machine counts no shootdowns")
        self.assertEqual(
            told,
            {("recycle", "faults"), ("recycle", "time"), ("recycle", "inverse"),
             ("recycle, 4 MiB", "time"), ("first cycle", "time"), ("first touch", "time"),
             ("first touch", "time of copied"), ("trap", "time"), ("lookup", "lookup_ns"),
             ("threads", "beside_first"), ("threads", "beside_second"),
             ("threads", "shootdowns"), ("idle slots", "idle_private_kib"),
             ("SQLite", "recycle"), ("SQLite", "time"), ("fresh process", "query"),
             ("a new pool", "create_ns"),
             ("a new pool", "acquire_ns"), ("a new pool", "touch_ns")})

    def test_text_fits_a_terminal_and_mistakes_are_named(self):
        ran = run("--quick", "--rows=what-bounds,trap-by-read")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn("the numbers mean nothing", ran.stdout)
        self.assertIn("goals that were measured are reached", ran.stdout)
        for line in ran.stdout.splitlines()[5:]:
            self.assertLessEqual(len(line), 80)
        ran = run("--rows=none")
        self.assertEqual((ran.returncode, ran.stderr),
                         (1, "--rows=none: there is no such row; --list has all\n"))
        ran = subprocess.run(["bench/peers/native", "some"], input="round work=cycle\n",
                             capture_output=True, text=True, check=False)
        self.assertIn("some: there is no such way", ran.stderr)


class Times(unittest.TestCase):
    """On made-up readings."""

    def times(self, readings):
        answer = report.with_times({"ns": readings})
        return answer["median_ns"], answer["mean_ns"]

    def test_what_happens_now_and_then_is_in_the_mean_only(self):
        self.assertEqual(self.times([10_000] * 90 + [60_000] * 10), (10_000, 15_000))

    def test_time_slices_of_others_are_in_neither(self):
        self.assertEqual(self.times([10_000] * 99 + [4_000_000]), (10_000, 10_000))

    def test_long_cycles_are_not_taken_for_time_slices(self):
        self.assertEqual(self.times([900_000, 1_000_000, 2_000_000]), (1_000_000, 1_300_000))

    def test_short_cycles_are_measured_finer_than_the_clocks_steps(self):
        # A clock that stands still, and then moves by four cycles at once.
        self.assertEqual(self.times([200, 0, 0, 0] * 100), (50, 50))


class Counters(unittest.TestCase):
    """On made-up answers."""

    def test_who_has_not_taken_the_faults_that_are_named_has_no_number(self):
        row = Row("recycle", "k=16", "work=cycle pages=same k=16")
        for name, family, right, wrong in (
                (MINE, "C++", 0, 16), (LIMIT, "C++", 0, 16), (SCAN, "C++", 0, 16),
                (DONTNEED, "C++", 16, 0), ("Wasmtime 50: default", "Wasmtime", 16, 0),
                ("Wasmtime 50: keep resident", "Wasmtime", 0, 16),
                ("Wasmtime 50: scan, mended", "Wasmtime", 0, 16),
                ("Wasmtime 0.33: uffd", "Wasmtime", 16, 0),
                ("Wasmtime 0.33: uffd", "Wasmtime", 16, 32)):
            contender = report.Contender(name, family, [])
            for faults, counts in ((right, True), (wrong, False)):
                failed = report.hold_to_counters(
                    row, contender, {"cycles": 400, "faults": 400 * faults})
                self.assertEqual(failed is None, counts, f"{name}: {failed}")

    def test_who_has_read_other_bytes_has_no_number(self):
        ends = {name: {"answers": [{"sum": one}, {"sum": two}]}
                for name, one, two in ((MINE, "a", "b"), (SCAN, "a", "b"), (MEMCPY, "a", "c"))}
        report.disown_other_sums(Row("recycle", "k=1", "work=cycle k=1"), ends)
        self.assertEqual([name for name, end in ends.items() if "failed" in end], [MEMCPY])

    def test_what_most_of_ours_have_read_is_not_right_for_that(self):
        ends = {name: {"answers": [{"sum": one}]} for name, one in (
            (MINE, "a"), ("firsttouch: copied", "a"), ("firsttouch: not published", "a"),
            (SCAN, "b"), (MEMCPY, "b"))}
        report.disown_other_sums(Row("recycle", "k=1", "work=cycle k=1"), ends)
        self.assertNotIn("failed", ends[SCAN])
        self.assertIn("failed", ends[MINE])


class Goals(unittest.TestCase):
    """On made-up rounds."""

    def goals(self, title, means, medians=None, section="recycle"):
        ends = {name: {"family": "C++", "numbers": numbers, "answers": [
            {"median_ns": n} for n in (medians or means)[name]]}
            for name, numbers in means.items()}
        row = {"section": section, "title": title, "value": "memory_ns",
               "request": f"round work=cycle k={title.split('=')[1]} cycles=1",
               "contenders": ends}
        report.summarize(row)
        return [(g["what"], g["other"], g["bound"], g["measured"], g["reached"])
                for g in report.goals_of([row])]

    def test_a_ratio_is_taken_within_a_round(self):
        self.assertEqual(
            self.goals("others, k=16", {MINE: [10, 20, 90], DONTNEED: [10, 40, 30]}),
            [("time", DONTNEED, 0.75, [1, 1], False)])

    def test_a_goal_holds_for_means_and_for_medians(self):
        self.assertEqual(
            self.goals("mixed, k=32", {MINE: [70], SCAN: [100]}, {MINE: [50], SCAN: [100]}),
            [("time", SCAN, 0.6, [0.7, 0.5], False)])

    def test_the_best_other_is_neither_the_limit_nor_one_of_ours(self):
        self.assertEqual(
            self.goals("others, k=1", {MINE: [100], "firsttouch: copied": [1], LIMIT: [1],
                                       SCAN: [400], MEMCPY: [200], DONTNEED: [300]}),
            [("time", MEMCPY, 1.1, [0.5, 0.5], True)])

    def test_one_and_four_pages_have_other_bounds_than_more(self):
        bounds = [bound for k in (0, 1, 4, 16, 64, 256)
                  for what, _, bound, _, _ in self.goals(f"same, k={k}",
                                                         {MINE: [1], SCAN: [1]})
                  if what == "inverse"]
        self.assertEqual(bounds, [10, 10, 2, 1.2])

    def test_without_ours_or_the_other_there_are_none(self):
        self.assertEqual(self.goals("same, k=4", {LIMIT: [1]}), [])
        self.assertEqual(self.goals("mixed, k=32", {MINE: [1], LIMIT: [1]}), [])


if __name__ == "__main__":
    unittest.main()
