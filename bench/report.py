"""Measures the contenders of bench/peers in turns, and writes what came out.

Called by report.sh. A row is one piece of work with its parameters; all
contenders that can do it take turns within each round. A row is a file in a folder
of its commit, and one that is there is not measured again.
"""

import argparse
import json
import os
import pathlib
import platform
import selectors
import statistics
import subprocess
import sys
import time

import report_page
from report_page import CYCLES, OURS

ANSWER_SECONDS = 90


class Contender:
    """A program that answers requests, started when it is first asked."""

    def __init__(self, name, family, command):
        self.name, self.family, self.command = name, family, command
        self.process = None

    def ask(self, request):
        """The answer; {"failed": why} if there is none."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        process = self.process
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                if not ready.select(ANSWER_SECONDS):
                    return self.fail(f"no answer in {ANSWER_SECONDS} s")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        return json.loads(line) if line else self.fail(None)

    def fail(self, why):
        """Ends the program; says why."""
        self.process.kill()
        _, errors = self.process.communicate()
        ended = self.process.returncode
        self.process = None
        said = [line for line in errors.decode().splitlines() if line.strip()]
        return {"failed": why or f"ended with {ended}: {' '.join(said[:2])[:300]}"}

    def end(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def counted(self, counter, request):
        """System calls and signals of the request, and of how many cycles."""
        run = subprocess.run(
            [counter, *self.command],
            input=f"{request} marked=1\n".encode(),
            capture_output=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
        return json.loads(run.stdout) if run.returncode == 0 else {}


def contenders(build, native):
    modules = str(build / "modules")
    found = [
        Contender(name, "C++", [native, way])
        for way, name in {
            "firsttouch": OURS["C++"],
            "dontneed": "file mapping + MADV_DONTNEED",
            "scan": "file mapping + PAGEMAP_SCAN",
            "memcpy": "memcpy of the image",
            "limit": "memcpy of the changed (limit)",
            "fork": "fork for each lease",
            "anonymous": "anonymous memory",
        }.items()
    ]
    for path in sorted((build / "bin").iterdir()):
        if path.name == "wasm2c-stock":
            found.append(Contender("wasm2c's own runtime", "C++", [str(path), "stock"]))
            continue
        version = path.name.removeprefix("wasmtime-")
        if path.name == "wasmtime-firsttouch":
            ways = {"firsttouch": OURS["Wasmtime"]}
        elif version.startswith("0.33"):
            ways = {"uffd": f"Wasmtime {version}: uffd"}
        elif version.endswith("-scan-mended"):
            number = version.removesuffix("-scan-mended")
            ways = {"scan": f"Wasmtime {number}: scan, mended"}
        else:
            ways = {
                "default": f"Wasmtime {version}: default",
                "batch": f"Wasmtime {version}: batches of 16",
                "keep": f"Wasmtime {version}: keep resident",
                "scan": f"Wasmtime {version}: keep, scan",
            }
        for way, name in ways.items():
            found.append(Contender(name, "Wasmtime", [str(path), way, modules]))
    return found


class Row:
    """What is asked, of whom, and what must have happened meanwhile."""

    def __init__(self, section, title, request, value="memory_ns", cycles=None,
                 only=None, without=(), count=False, rounds=None):
        self.section, self.title, self.value = section, title, value
        self.words = dict(w.split("=") for w in request.split())
        if cycles:
            self.words["cycles"] = str(cycles)
        self.request = "round " + " ".join(f"{n}={v}" for n, v in self.words.items())
        self.only, self.without, self.count = only, without, count
        self.rounds = rounds
        self.name = "-".join(
            "".join(c for c in w if c.isalnum() or c in "._")
            for w in (section + " " + title).split()
        )

    def number(self, name, otherwise=0):
        return int(self.words.get(name, otherwise))

    def takes(self, contender):
        name = contender.name
        if any(part in name for part in self.without):
            return False
        if name.startswith("wasm2c") and self.words["work"] != "sqlite":
            return False
        if name == "anonymous memory" and self.words["work"] != "touch":
            return False
        return self.only is None or any(part in name for part in self.only)

    def faults(self, contender):
        """At least and at most so many page faults in a cycle; None: unknown."""
        work, k = self.words["work"], self.number("k")
        name = contender.name
        if work == "touch":
            count = self.number("count")
            if name == OURS["C++"]:
                return count / 256, count
            around = 1 if self.number("write") or self.number("step", 1) > 16 else 16
            return count / around, 2 * count + 8
        if work != "cycle" or self.number("slots", 1) > 1 or self.number("grown"):
            return None
        drops = ("DONTNEED" in name or "fork" in name or "default" in name
                 or "batches" in name)
        if drops:
            return 0.9 * k, None
        if self.words.get("pages") == "same" and ("firsttouch" in name
                                                  or "limit" in name):
            return 0, 0.1 + 0.01 * k
        return None


def all_rows():
    rows = []
    not_memcpy = ("limit",)
    for pages in ("same", "others", "mixed"):
        for k in (32,) if pages == "mixed" else CYCLES:
            if k or pages == "same":
                rows.append(Row("recycle", f"{pages}, k={k}",
                                f"work=cycle pages={pages} k={k}",
                                cycles=CYCLES.get(k, 250), count=k in (16, 32)))
    for k in (0, 1, 16, 64, 256):
        rows.append(Row("first cycle", f"of a slot, known image, k={k}",
                        f"work=first k={k} slots=32", without=not_memcpy + ("fork",)))
    for write in (0, 1):
        for where, first in (("image", 0), ("zeroes", 264)):
            for step, count in ((1, 248), (8, 31)):
                rows.append(Row(
                    "first touch",
                    f"{'write' if write else 'read'}, {where}, "
                    f"{'each page' if step == 1 else 'each eighth page'}",
                    f"work=touch write={write} first={first} step={step} count={count}",
                    value="touch_page_ns", cycles=60,
                    only=("firsttouch", "DONTNEED", "default", "uffd")
                    + (("anonymous",) if first else ()),
                    without=("on Wasmtime",)))
    rows.append(Row("trap", "repeated", "work=traps", value="memory_ns", cycles=400,
                    only=("Wasmtime",)))
    rows.append(Row("trap", "the first of an instance", "work=traps", value="first_ns",
                    cycles=50, only=("Wasmtime",)))
    for grown in (1, 16):
        rows.append(Row("growth", f"by {grown * 64} KiB in each cycle, all written",
                        f"work=cycle k=0 grown={grown}", cycles=400 // grown + 40,
                        count=True, without=("limit", "fork")))
    cores = os.cpu_count()
    for pages in ("same", "others"):
        for k in (1, 16, 64):
            for threads in (1, cores, 2 * cores):
                rows.append(Row(
                    "threads", f"{pages}, k={k}, {threads} thread"
                    + ("s" if threads > 1 else ""),
                    # Long enough that threads which share a core take turns.
                    f"work=cycle pages={pages} k={k} threads={threads} ms=40",
                    value="per_second", cycles=1_000_000, without=("fork",)))
    rows.append(Row("many images", "1,000 of 64 KiB over 64 slots, k=4",
                    "work=cycle k=4 image_kib=64 images=1000 slots=64", cycles=640,
                    without=("limit", "fork")))
    rows.append(Row("more than the caches hold", "64 slots, 1 MiB changed in each",
                    "work=cycle k=256 slots=64", cycles=64, without=("fork",)))
    for slots in (100, 1000, 10000):
        rows.append(Row("many slots", f"{slots:,}, k=16, one round",
                        f"work=many slots={slots} k=16", value="acquire_ns", rounds=1,
                        without=("limit", "fork", "batches", "memcpy")))
    for pages in ("same", "others"):
        rows.append(Row("SQLite", f"{pages} rows", f"work=sqlite pages={pages}",
                        value="mean_ns", cycles=30, count=True,
                        without=("limit", "fork")))
    return rows


def number_of(row, answer):
    """What the row compares."""
    if row.value == "memory_ns":
        # What a module without a memory takes is no part of it. The mean has in it
        # what a contender does every some cycles.
        return answer["mean_ns"] - answer.get("rest_mean_ns", 0)
    if row.value == "touch_page_ns":
        return answer["touch_median_ns"] / row.number("count")
    return answer[row.value]


def measure(row, everybody, rounds, counter):
    taking = [c for c in everybody if row.takes(c)]
    ends = {c.name: {"family": c.family, "answers": [], "numbers": []} for c in taking}
    for _ in range(row.rounds or rounds):
        for c in taking:
            end = ends[c.name]
            if "failed" in end:
                continue
            answer = c.ask(row.request)
            if "failed" in answer:
                end["failed"] = answer["failed"]
                continue
            if row.words["work"] == "traps" and answer["trapped"] != answer["cycles"]:
                end["failed"] = f"{answer['trapped']} of {answer['cycles']} traps"
                continue
            bounds = row.faults(c)
            if bounds and answer.get("cycles"):
                faults = answer["faults"] / answer["cycles"]
                end["faults"] = faults
                least, most = bounds
                if faults < least or (most is not None and faults > most):
                    end["failed"] = (
                        f"did not take place: {faults:.2f} page faults in a cycle, "
                        f"expected {least:g} to {most if most is not None else 'any'}")
                    continue
            elif "faults" in answer and answer.get("cycles"):
                end["faults"] = answer["faults"] / answer["cycles"]
            end["answers"].append(answer)
            end["numbers"].append(number_of(row, answer))
    for c in taking:
        if c.process is None:
            continue
        checked = c.ask("check")
        if checked.get("clean") != "yes":
            ends[c.name]["failed"] = checked.get("failed", "passed on what a guest wrote")
        ends[c.name]["supply"] = checked.get("supply", "")
        if row.count and "failed" not in ends[c.name]:
            counted = c.counted(counter, row.request)
            if counted:
                cycles = ends[c.name]["answers"][0]["cycles"]
                ends[c.name]["calls"] = counted["calls"] / cycles
                ends[c.name]["signals"] = counted["signals"] / cycles
        if row.words["work"] == "many":
            c.end()
    # Rounds of a row differ in their cycles, contenders in nothing.
    by_round = {}
    for c in taking:
        for i, answer in enumerate(ends[c.name]["answers"]):
            if "sum" in answer and not (c.name.startswith("anonymous")
                                        and row.number("first") == 0):
                by_round.setdefault(i, {}).setdefault(answer["sum"], []).append(c.name)
    for seen in by_round.values():
        if len(seen) > 1:
            right = max(seen.values(), key=len)
            for names in seen.values():
                for name in names:
                    if names is not right:
                        ends[name]["failed"] = "read other bytes than the others"
    return {"section": row.section, "title": row.title, "value": row.value,
            "request": row.request, "when": time.time(), "contenders": ends}


def starts(programs, kept, quick):
    """Writes the rows of fresh processes, which bench/images lets take turns."""
    command = [str(programs.parent / "images"), "--format=json", "--tables=start,cold"]
    run = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True,
                         check=False)
    if run.returncode != 0:
        print(f"bench/images: {run.stderr.strip()}", flush=True)
        return
    rows = {}
    for start in json.loads(run.stdout)["starts"]:
        way = start["way"].replace("no working set", "firsttouch, no working set")
        rows.setdefault((start["page_cache"], start["query"]), {})[
            OURS["C++"] if way == "working set" else way] = {
            "family": "C++", "answers": [], "numbers": start["round_all_ns"],
            "faults": start.get("faults", 0) + start.get("kernel_faults", 0)}
    for i, ((cache, query), found) in enumerate(rows.items()):
        (kept / f"fresh-process-{i}.json").write_text(json.dumps({
            "section": "fresh process", "value": "all_ns", "request": "bench/images",
            "title": f"SQLite from a file, page cache {cache}, "
                     + ("the rows that it learned from" if query == "same"
                        else "other rows"),
            "when": time.time(), "contenders": found}))


def summarize(result):
    """Adds medians, quartiles and ratios to a measured row."""
    more_is_better = result["value"] == "per_second"
    good = {n: e for n, e in result["contenders"].items()
            if "failed" not in e and e["numbers"]}
    for end in good.values():
        numbers = sorted(end["numbers"])
        if statistics.median(numbers) <= 0:
            end["failed"] = "takes no longer than a module without a memory"
            continue
        end["median"] = statistics.median(numbers)
        end["low"], end["high"] = (
            (numbers[0], numbers[-1]) if len(numbers) < 4
            else statistics.quantiles(numbers, n=4)[::2])
    good = {n: e for n, e in good.items() if "median" in e}
    result["ratios"] = {}
    for family, name in OURS.items():
        others = [n for n, e in good.items() if not n.startswith("firsttouch")
                  and "limit" not in n
                  # What is more than memory's part belongs to its runtime.
                  and (family == e["family"]
                       or result["value"] in ("memory_ns", "touch_page_ns"))]
        if name not in good or not others:
            continue
        best = (max if more_is_better else min)(others, key=lambda n: good[n]["median"])
        ours, theirs = good[name]["numbers"], good[best]["numbers"]
        ratios = [(a / b if more_is_better else b / a)
                  for a, b in zip(ours, theirs) if a > 0 and b > 0]
        if not ratios:
            continue
        result["ratios"][name] = {
            "best": best, "median": statistics.median(ratios),
            "low": min(ratios), "high": max(ratios)}
    return result


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ")[1]
    return "unknown"


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--commit", default="")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true",
                        help="one round with few cycles, to see that all works")
    parser.add_argument("--rows", default="", help="only rows with this in their names")
    parser.add_argument("--again", action="store_true",
                        help="measures rows that are there already, too")
    options = parser.parse_args()
    # What was measured of another commit is no row of this report.
    kept = (options.out / ("quick" if options.quick else "rows")
            / (options.commit.replace("/", "-") or "unknown"))
    kept.mkdir(parents=True, exist_ok=True)
    os.environ["LD_LIBRARY_PATH"] = str(options.build / "lib")
    everybody = contenders(options.build, str(options.programs / "native"))
    counter = str(options.programs / "counted")
    begun = time.time()
    for row in all_rows():
        path = kept / f"{row.name}.json"
        if options.rows not in row.name or (path.exists() and not options.again):
            continue
        if options.quick:
            if "cycles" in row.words:
                row.request = row.request.replace(
                    f"cycles={row.words['cycles']}", "cycles=20")
            if row.number("slots") > 1000:
                continue
        start = time.time()
        result = measure(row, everybody, 1 if options.quick else options.rounds, counter)
        path.write_text(json.dumps(result))
        failed = [f"{n}: {x['failed']}" for n, x in result["contenders"].items()
                  if "failed" in x]
        print(f"{time.time() - begun:5.0f} s  {row.section}: {row.title} "
              f"({time.time() - start:.1f} s)", *failed, sep="\n         ", flush=True)
    for c in everybody:
        c.end()
    if options.rows in "fresh process" and (
            options.again or not list(kept.glob("fresh-process-*.json"))):
        starts(options.programs, kept, options.quick)
    rows = [json.loads((kept / f"{r.name}.json").read_text()) for r in all_rows()
            if (kept / f"{r.name}.json").exists()]
    rows += [json.loads(path.read_text())
             for path in sorted(kept.glob("fresh-process-*.json"))]
    for row in rows:
        summarize(row)
    left_out = {p.name: p.read_text().strip()
                for p in sorted((options.build / "left_out").iterdir())
                if p.suffix != ".log"}
    about = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": f"firsttouch {options.commit}; {said('rustc', '--version')}; "
                    f"{said('g++', '--version').splitlines()[0]}",
        "firsttouch's pools": next(
            (x["supply"] for r in rows for n, x in r["contenders"].items()
             if n == OURS["C++"] and x.get("supply")), ""),
        "measured": time.strftime("%Y-%m-%d %H:%M", time.gmtime(rows[0]["when"]))
                    + f" UTC, {options.rounds} rounds"
                    + (" (QUICK: the numbers mean nothing)" if options.quick else ""),
        "left out": "; ".join(f"{n}: {why}" for n, why in left_out.items()) or "nobody",
    }
    report = {"about": about, "rows": rows}
    (options.out / "report.json").write_text(json.dumps(report, indent=1))
    (options.out / "report.html").write_text(report_page.page(report))
    (options.out / "report.md").write_text(report_page.markdown(report))
    print(options.out / "report.html")
    bad = [r for r in rows if any("did not take place" in x.get("failed", "")
                                  or "other bytes" in x.get("failed", "")
                                  or "passed on" in x.get("failed", "")
                                  for n, x in r["contenders"].items()
                                  if n in OURS.values())]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
