"""Measures the contenders of bench/peers in turns, and says what came out.

Called by report.sh, and by `./bazelw run -c opt //bench:report` for the contenders in
C++ alone. A row is one piece of work with its parameters; all contenders that can do it
take turns within each round.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import selectors
import statistics
import subprocess
import sys
import tempfile
import time

import report_page
from report_rows import (COPIED, COPIED_HANDLER, DONTNEED, FRESH, LIMIT, MAP_FILE, MEMCPY,
                         NATIVE, OURS, SCAN, SEGV, SEGV_MASK, WASMTIME, all_rows,
                         is_variant)

ANSWER_SECONDS = 90
BEST_OTHER = (DONTNEED, SCAN, MEMCPY)

# What firsttouch is to reach in C++: the rows (a regular expression of section: title),
# from how many changed pages to how many, what is measured ("time" and "inverse": as a
# multiple of the other's and the reverse, both by the means of the cycles and by their
# medians; "above": a number less the other's; else a number), beside whom (the best of
# these), and at most (at least, with ">=") what. A bound may depend on the number of
# pages.
ANY = (0, 1 << 20)
GOALS = [
    ("recycle: same", ANY, "calls", None, "<=", 0),
    ("recycle: same", ANY, "signals", None, "<=", 0),
    ("recycle: same", ANY, "faults", None, "<=", 0),
    ("recycle: same", (4, 256), "time", (LIMIT,), "<=", 1.15),
    ("recycle: same", (1, 4), "inverse", (SCAN,), ">=", 10),
    ("recycle: same", (16, 16), "inverse", (SCAN,), ">=", 2),
    ("recycle: same", (64, 64), "inverse", (SCAN,), ">=", 1.2),
    ("recycle.*: others", (0, 15), "time", BEST_OTHER, "<=", 1.1),
    ("recycle.*: others", (16, 256), "time", BEST_OTHER, "<=", 0.75),
    ("recycle.*: mixed", ANY, "time", BEST_OTHER, "<=", 0.6),
    ("first cycle: .*known image", ANY, "time", (DONTNEED,), "<=", 0.9),
    ("first cycle: .*new image", ANY, "time", (DONTNEED,), "<=", 1.1),
    ("first touch: read, image, each page", ANY, "time", (DONTNEED,), "<=", 1.3),
    ("first touch: .*, image, each page", ANY, "time of copied", (FRESH,), "<=", 0.8),
    ("first touch: .*, image, each page", ANY, "time of copied", (COPIED_HANDLER,), "<=",
     0.45),
    ("trap: by", ANY, "time", (SEGV,), "<=", 1.2),
    ("trap: by", ANY, "time", (SEGV_MASK,), "<=", 1.2),
    ("lookup: .*overlapping", ANY, "lookup_ns", None, "<=", 5),
    ("threads: same.*2 threads", ANY, "beside_first", (LIMIT,), ">=", 0.95),
    ("threads: same.*2 threads", ANY, "shootdowns", (LIMIT,), "above", 0.01),
    ("threads: others.*2 threads", (0, 15), "time", BEST_OTHER, "<=", 1.1),
    ("threads: others.*2 threads", (16, 256), "time", BEST_OTHER, "<=", 0.75),
    ("threads: mixed.*2 threads", ANY, "time", BEST_OTHER, "<=", 0.6),
    ("threads: .*[48] threads", ANY, "beside_second", None, ">=", 0.9),
    ("idle slots: 64", ANY, "idle_private_kib", None, "<=", lambda k: 12 + 4 * k),
    ("SQLite: ", ANY, "recycle", (SCAN,), "<=", 0.5),
    ("SQLite: ", ANY, "time", (SCAN,), "<=", 0.9),
    ("SQLite: ", ANY, "time", (DONTNEED,), "<=", 0.2),
    ("fresh process: .*warm, the rows that it learned from", ANY, "query", (MAP_FILE,),
     "<=", 0.7),
    ("image files: open and bind.* (64|1024) MiB", ANY, "beside_first", None, "<=", 1.5),
    ("image files: .*in a store", ANY, "files", None, "<=", 8),
    ("a new pool: of 64 slots", ANY, "create_ns", None, "<=", 1e6),
    ("a new pool: of 64 slots", ANY, "acquire_ns", None, "<=", 1e6),
    ("a new pool: of 64 slots", ANY, "touch_ns", None, "<=", 1e6),
]


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
        return with_times(json.loads(line)) if line else self.fail(None)

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
        """System calls and signals of the request."""
        try:
            run = subprocess.run(
                [*counter, *self.command],
                input=f"{request}\n".encode(),
                capture_output=True,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {}
        return json.loads(run.stdout) if run.returncode == 0 else {}


def with_times(answer):
    """Makes a median and a mean of each list of readings in ns."""
    for name in [name for name, value in answer.items() if isinstance(value, list)]:
        readings = answer.pop(name)
        median = statistics.median(readings)
        # In longer ones the thread did not run, another program did.
        longest = max(10 * median, 500_000)
        mean = statistics.fmean(reading for reading in readings if reading <= longest)
        if median < 2000:
            # The clock of some machines moves in steps of 10 ns. Readings that follow
            # each other without a gap add up exactly.
            groups = range(0, len(readings) - 19, 20)
            median = statistics.median([statistics.fmean(readings[i:i + 20])
                                        for i in groups] or [median])
        answer |= {name.replace("ns", "median_ns"): max(median, 0),
                   name.replace("ns", "mean_ns"): max(mean, 0)}
    return answer


def contenders(build, native):
    found = [Contender(name, "C++", [native, way]) for way, name in NATIVE.items()]
    for path in sorted((build / "bin").iterdir()) if build else ():
        if path.name == "wasm2c-stock":
            found.append(Contender("wasm2c's own runtime", "C++", [str(path), "stock"]))
            continue
        version = path.name.removeprefix("wasmtime-")
        if version == "firsttouch":
            ways = {"firsttouch": OURS["Wasmtime"]}
        elif version.startswith("0.33"):
            ways = {"uffd": f"Wasmtime {version}: uffd"}
        elif version.endswith("-scan-mended"):
            ways = {"scan": f"Wasmtime {version.split('-')[0]}: scan, mended"}
        else:
            ways = {way: f"Wasmtime {version}: {name}" for way, name in WASMTIME.items()}
        found += [Contender(name, "Wasmtime", [str(path), way, str(build / "modules")])
                  for way, name in ways.items()]
    return found


def number_of(row, answer):
    """What the row compares."""
    if row.value == "memory_ns":
        # What a module without a memory takes is no part of it. The mean has in it
        # what a contender does every some cycles.
        return answer["mean_ns"] - answer.get("rest_mean_ns", 0)
    if row.value == "touch_page_ns":
        return answer["touch_median_ns"] / row.number("count")
    if row.value == "lease_ns":
        return answer["acquire_ns"] + answer["touch_ns"] + answer["release_ns"]
    return answer[row.value]


def hold_to_counters(row, contender, answer):
    """Says why the answer counts for nothing, if it does."""
    if row.words["work"] == "traps" and answer["trapped"] != answer["cycles"]:
        return f"did not take place: {answer['trapped']} of {answer['cycles']} traps"
    if answer.get("cached_pages"):
        return "the page cache keeps the file: name a folder on a disk by --directory"
    bounds = row.faults(contender)
    if bounds and answer.get("cycles") and "faults" in answer:
        faults = answer["faults"] / answer["cycles"]
        least, most = bounds
        # A process may have some of its own in a round.
        if faults < least or (most is not None and faults > most + 8 / answer["cycles"]):
            return (f"did not take place: {faults:.2f} page faults in a cycle, "
                    f"expected {least:g} to {most if most is not None else 'any'}")
    return None


def disown_other_sums(row, ends):
    """Who has read other bytes than the others has no number."""
    by_round = {}
    for name, end in ends.items():
        for i, answer in enumerate(end["answers"]):
            if "sum" in answer and not (name.startswith("anonymous")
                                        and row.number("first") == 0):
                by_round.setdefault(i, {}).setdefault(answer["sum"], []).append(name)
    for seen in by_round.values():
        # There are more of ours than of others in some rows.
        right = max(seen.values(), key=lambda names: (
            sum(n not in OURS.values() and not is_variant(n) for n in names), len(names)))
        for names in seen.values():
            for name in names if names is not right else ():
                ends[name]["failed"] = "read other bytes than the others"


def conclude(row, contender, end, counter, few):
    """Adds what is counted of each cycle, and whether the next guest finds it clean."""
    for counted in ("faults", "shootdowns"):
        each = [a[counted] / a["cycles"] for a in end["answers"]
                if counted in a and a.get("cycles")]
        if each:
            end[counted] = statistics.median(each)
    if contender.process is not None:
        checked = contender.ask("check")
        if checked.get("clean") != "yes":
            end["failed"] = checked.get("failed", "passed on what a guest wrote")
        end["supply"] = checked.get("supply", "")
        end["optimized"] = checked.get("optimized", "")
    if row.count and "failed" not in end:
        cycles = min(100, int(end["answers"][0]["cycles"]))
        counted = contender.counted(
            counter, row.request(**{**few, "cycles": cycles}, marked=1))
        for what in ("calls", "signals") if counted else ():
            end[what] = counted[what] / cycles


def measure(row, everybody, rounds, few, counter):
    """The results of a row: one, or one for each value of its word."""
    ends = {n: {} for n in row.each}
    turns = []
    for n in row.each:
        for c in everybody:
            if row.takes(c):
                ends[n][c.name] = {"family": c.family, "answers": [], "numbers": []}
                # Each value in a process of its own, so that all can take turns.
                turns.append((c if n is None else Contender(c.name, c.family, c.command),
                              ends[n][c.name], row.request(n, **few)))
    for _ in range(row.rounds or rounds):
        for c, end, request in turns:
            if "failed" in end:
                continue
            if row.fresh:
                c.end()
            answer = c.ask(request)
            failed = answer.get("failed") or hold_to_counters(row, c, answer)
            if failed:
                end["failed"] = failed
                continue
            end["answers"].append(answer)
            end["numbers"].append(number_of(row, answer))
    for c, end, _ in turns:
        conclude(row, c, end, counter, few)
        if row.words["work"] == "many" or row.word or row.fresh:
            c.end()
    if not row.number("ms"):
        # Rounds of a row differ in their cycles, contenders in nothing.
        for found in ends.values():
            disown_other_sums(row, found)
    for of, field in zip(row.each if row.word else (), ("beside_first", "beside_second")):
        for found in ends.values():
            for name, end in found.items():
                ratios = [a / b for a, b in zip(end["numbers"], ends[of][name]["numbers"])
                          if b > 0]
                if ratios:
                    end[field] = statistics.median(ratios)
    return [{"section": row.section, "title": title, "value": row.value,
             "request": row.request(n), "when": time.time(), "contenders": found}
            for title, (n, found) in zip(row.titles(), ends.items())]


def summarize(result):
    """Adds medians, quartiles and ratios to a measured row."""
    more_is_better = result["value"] == "per_second"
    good = {}
    for name, end in result["contenders"].items():
        numbers = sorted(end["numbers"])
        if "failed" in end or not numbers:
            continue
        if statistics.median(numbers) <= 0 and result["value"] == "memory_ns":
            end["failed"] = "takes no longer than a module without a memory"
            continue
        end["median"] = statistics.median(numbers)
        end["low"] = numbers[len(numbers) // 4]
        end["high"] = numbers[(3 * len(numbers)) // 4]
        good[name] = end
    result["ratios"] = {}
    if result["value"] in ("idle_private_kib", "files"):
        return  # Nothing is fast there.
    for family, name in OURS.items():
        others = [n for n, e in good.items()
                  if n not in OURS.values() and n != LIMIT and not is_variant(n)
                  # What is more than memory's part belongs to its runtime.
                  and (family == e["family"]
                       or result["value"] in ("memory_ns", "touch_page_ns"))]
        if name not in good or not others:
            continue
        best = (max if more_is_better else min)(others, key=lambda n: good[n]["median"])
        ratios = [(a / b if more_is_better else b / a)
                  for a, b in zip(good[name]["numbers"], good[best]["numbers"])
                  if a > 0 and b > 0]
        if ratios:
            result["ratios"][name] = {
                "best": best, "median": statistics.median(ratios),
                "low": min(ratios), "high": max(ratios)}


def times_of(row, end, kind):
    """A number for each round, less of which is better: by the means, and by medians."""
    if kind == "query":
        return [[a["query_ns"] for a in end["answers"]]]
    if kind == "recycle":
        return [[a[f"recycle_{by}_ns"] for a in end["answers"]]
                for by in ("mean", "median")]
    if row["value"] == "per_second":
        return 2 * [[1 / number for number in end["numbers"]]]
    if row["value"] in ("memory_ns", "mean_ns"):
        return [end["numbers"], [a["median_ns"] for a in end["answers"]]]
    return 2 * [end["numbers"]]


def number_in(end, what):
    """A number of the row's, of the rounds the median."""
    if what in end:
        return end[what]
    return statistics.median(a[what] for a in end["answers"] if what in a)


def measured_of(row, ours, other, what, sense):
    """What a goal is about: once, or by the means and by the medians."""
    kind = what.partition(" ")[0]
    if kind in ("time", "inverse", "recycle", "query"):
        return [statistics.median(b / a if kind == "inverse" else a / b
                                  for a, b in zip(mine, theirs))
                for mine, theirs in zip(times_of(row, ours, kind),
                                        times_of(row, other, kind))]
    number = number_in(ours, what)
    if other is None:
        return [number]
    beside = number_in(other, what)
    return [number - beside if sense == "above" else number / beside]


def goals_of(rows):
    """What is to be reached in these rows, and what it is."""
    found = []
    for pattern, (least, most), what, others, sense, bound in GOALS:
        for row in rows:
            name = f"{row['section']}: {row['title']}"
            k = int(row["request"].partition(" k=")[2].split(" ")[0] or 0)
            good = {n: e for n, e in row["contenders"].items() if "median" in e}
            ours = COPIED if what.endswith("of copied") else OURS["C++"]
            beside = [n for n in others or () if n in good]
            if (not least <= k <= most or not re.match(pattern, name)
                    or ours not in good or (others and not beside)):
                continue
            sign = 1 if row["value"] != "per_second" else -1
            other = min(beside, key=lambda n: sign * good[n]["median"], default="")
            try:
                measured = measured_of(row, good[ours], good.get(other), what, sense)
            except (KeyError, statistics.StatisticsError, ZeroDivisionError):
                # Nobody has counted it here.
                continue
            limit = bound(k) if callable(bound) else bound
            found.append({
                "row": name, "what": what, "other": other, "sense": sense, "bound": limit,
                "measured": measured,
                "reached": min(measured) >= limit if sense == ">="
                else max(measured) <= limit})
    return found


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ")[1]
    return "unknown"


def said(*command):
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return f"{command[0]} is not here"
    return run.stdout.partition("\n")[0]


def about(rows, options):
    ours = [e for r in rows for n, e in r["contenders"].items() if n == OURS["C++"]]
    supply = next((e["supply"] for e in ours if e.get("supply")), "")
    told = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "firsttouch's pools": supply,
        "measured": time.strftime("%Y-%m-%d %H:%M", time.gmtime(rows[0]["when"]))
                    + f" UTC, {options.rounds} rounds",
    }
    if options.quick or (supply and not any(e.get("optimized") for e in ours)):
        told["NOTE"] = "quick, or built without -c opt: the numbers mean nothing"
    if options.build:
        told["versions"] = (f"firsttouch {options.commit}; {said('rustc', '--version')}; "
                            f"{said('g++', '--version')}")
        left_out = {p.name: p.read_text().strip()
                    for p in sorted((options.build / "left_out").iterdir())
                    if p.suffix != ".log"}
        told["left out"] = "; ".join(f"{n}: {w}" for n, w in left_out.items()) or "nobody"
    return told


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=pathlib.Path, required=True,
                        help="the folder of native")
    parser.add_argument("--build", type=pathlib.Path, help="what build.sh has built")
    parser.add_argument("--out", type=pathlib.Path,
                        help="where the pages go, and rows that are measured once only")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true",
                        help="one round with few cycles, to see that all works")
    parser.add_argument("--rows", default="",
                        help="only rows with one of these in their names, "
                             "which --list tells: recycle-same,trap")
    parser.add_argument("--list", action="store_true", help="the rows that there are")
    parser.add_argument("--directory", type=pathlib.Path,
                        help="where image files go, some GiB, on a disk for a cold page "
                             "cache; a temporary one by default")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser.parse_args()


def results_of(row, options, kept, everybody, directory):
    """Measured now, or before; none where nobody asks for the row."""
    few = row.hurried() if options.quick else {}
    if few is None or not any(row.takes(c) for c in everybody):
        return []
    paths = [kept / f"{row.name(t)}.json" for t in row.titles()] if kept else []
    if paths and all(p.exists() for p in paths):
        return [json.loads(p.read_text()) for p in paths]
    if not any(part in row.name() for part in options.rows.split(",")):
        return []
    if row.section in ("fresh process", "image files"):
        few["directory"] = directory
    start = time.time()
    results = measure(row, everybody, 1 if options.quick else options.rounds, few,
                      (str(options.programs / "native"), "counted"))
    for path, result in zip(paths, results):
        path.write_text(json.dumps(result))
    failed = [f"{n}: {e['failed']}" for result in results
              for n, e in result["contenders"].items() if "failed" in e]
    print(f"{row.section}: {row.title} ({time.time() - start:.1f} s)", *failed,
          sep="\n    ", file=sys.stderr, flush=True)
    return results


def main():
    options = arguments()
    if options.list:
        print(*[r.name() for r in all_rows()], sep="\n")
        return 0
    kept = None
    if options.out:
        # What was measured of another commit is no row of this report.
        kept = (options.out / ("quick" if options.quick else "rows")
                / options.commit.replace("/", "-"))
        kept.mkdir(parents=True, exist_ok=True)
    if options.build:
        os.environ["LD_LIBRARY_PATH"] = str(options.build / "lib")
    everybody = contenders(options.build, str(options.programs / "native"))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        rows = [result for row in all_rows()
                for result in results_of(row, options, kept, everybody, directory)]
    for c in everybody:
        c.end()
    if not rows:
        print(f"--rows={options.rows}: there is no such row; --list has all",
              file=sys.stderr)
        return 1
    for row in rows:
        summarize(row)
    report = {"about": about(rows, options), "rows": rows, "goals": goals_of(rows)}
    if options.out:
        (options.out / "report.json").write_text(json.dumps(report, indent=1))
        (options.out / "report.html").write_text(report_page.page(report))
        (options.out / "report.md").write_text(report_page.markdown(report))
        print(options.out / "report.html")
    elif options.format == "json":
        print(json.dumps(report, indent=1))
    else:
        print(report_page.text(report), end="")
    wrong = ("did not take place", "other bytes", "passed on", "ended with -", "no answer")
    bad = [r for r in rows if any(w in e.get("failed", "") for w in wrong
                                  for n, e in r["contenders"].items()
                                  if n in OURS.values() or is_variant(n))]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
