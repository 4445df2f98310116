"""The contenders of report.py, and its rows: what is asked, of whom, and what must
have happened meanwhile. bench/peers/README.md has the requests."""

import os

# Whose rows are compared with the best of the others.
OURS = {"C++": "firsttouch", "Wasmtime": "firsttouch on Wasmtime 48"}
DONTNEED, SCAN = "file mapping + MADV_DONTNEED", "file mapping + PAGEMAP_SCAN"
MEMCPY, LIMIT = "memcpy of the image", "memcpy of the changed (limit)"
COPIED, COPIED_HANDLER = "firsttouch: copied", "firsttouch: copied, handler thread"
HANDLER, UNMASKED = "firsttouch: handler thread", "firsttouch: no signal blocked"
NO_SET, READ_FILE = "firsttouch: no working set", "file read into memory"
MAP_FILE = "private mapping of the file"
FRESH, SEGV = "memcpy into fresh memory", "mprotect + SIGSEGV"
SEGV_MASK = SEGV + ", mask put back"

# The ways of peers/native.cc by their names.
NATIVE = {
    "firsttouch": OURS["C++"],
    "unpublished": "firsttouch: not published",
    "copied": COPIED,
    "handler": HANDLER,
    "copied-handler": COPIED_HANDLER,
    "signal": "firsttouch: tracking by signal",
    "async": "firsttouch: tracking async",
    "mappings-drop": "firsttouch: mappings-drop",
    "mappings-scan": "firsttouch: mappings-scan",
    "unmasked": UNMASKED,
    "dontneed": DONTNEED,
    "scan": SCAN,
    "memcpy": MEMCPY,
    "limit": LIMIT,
    "fork": "fork for each lease",
    "anonymous": "anonymous memory",
    "fresh-copy": FRESH,
    "segv": SEGV,
    "segv-mask": SEGV_MASK,
    "no-set": NO_SET,
    "read-file": READ_FILE,
    "map-file": MAP_FILE,
    "machine": "the machine",
}
# Of whom only this work is asked.
ONLY_WORK = {UNMASKED: "touch", "anonymous memory": "touch", FRESH: "touch",
             NO_SET: "start", READ_FILE: "start", MAP_FILE: "start", SEGV: "traps",
             SEGV_MASK: "traps", "the machine": "floor", "wasm2c's own runtime": "sqlite"}
# The ways of a release of Wasmtime.
WASMTIME = {"default": "default", "batch": "batches of 16", "keep": "keep resident",
            "scan": "keep, scan"}
# Pages changed, and how many cycles of them a round has.
CYCLES = {0: 800, 1: 800, 4: 600, 16: 400, 64: 150, 256: 60}
# Rows without other contenders.
ALONE = {"only": (OURS["C++"],), "family": "C++"}


def is_variant(name):
    """Whether it is this library with other than default options."""
    return name.startswith("firsttouch: ")


class Row:
    """What is asked, of whom, and what must have happened meanwhile."""

    def __init__(self, section, title, request, value="memory_ns", cycles=None,
                 only=None, without=(), variants=(), family=None, count=False,
                 rounds=None, each=None, fresh=False):
        self.section, self.title, self.value = section, title, value
        self.words = dict(w.split("=") for w in request.split())
        if cycles:
            self.words["cycles"] = str(cycles)
        self.only, self.without, self.variants = only, without, variants
        self.family, self.count, self.rounds = family, count, rounds
        # A row for each value of a word, all in turns; and whether each round is the
        # first thing that a process does.
        self.word, self.each = each or (None, (None,))
        self.fresh = fresh

    def request(self, each=None, **more):
        words = {**self.words, **more} | ({self.word: each} if each else {})
        return "round " + " ".join(f"{n}={v}" for n, v in words.items())

    def hurried(self):
        """What is asked instead, to see that all works; None for what takes long."""
        if self.number("slots") > 1000 or self.words["work"] == "store":
            return None
        few = {"warmup": 40}
        if self.section in ("SQLite", "fresh process"):
            few["rows"] = 500
        if self.number("images"):
            few["images"] = 20
        if self.number("mib"):
            few["mib"] = 1
        if self.word == "mib":
            self.each = (1, 4)
        if self.number("ms"):
            few["ms"] = 2
        elif self.number("cycles"):
            few["cycles"] = min(20, self.number("cycles"))
        return few

    def name(self, title=None):
        return "-".join("".join(c for c in w if c.isalnum() or c in "._")
                        for w in f"{self.section} {title or self.title}".split())

    def titles(self):
        return [self.title if n is None else
                f"{self.title}, {n} "
                + ("MiB" if self.word == "mib" else "thread" if n == 1 else "threads")
                for n in self.each]

    def number(self, name, otherwise=0):
        return int(self.words.get(name, otherwise))

    def takes(self, contender):
        name, work = contender.name, self.words["work"]
        if ONLY_WORK.get(name, work) != work or self.family not in (None, contender.family):
            return False
        if is_variant(name):
            return self.variants == "all" or name in self.variants
        return (not any(part in name for part in self.without)
                and (self.only is None or any(part in name for part in self.only)))

    def faults(self, contender):
        """At least and at most so many page faults in a cycle; None: unknown."""
        work, k, name = self.words["work"], self.number("k"), contender.name
        if work == "touch":
            count, step = self.number("count"), self.number("step", 1)
            if name.startswith("firsttouch"):
                return count / 256, count
            if name == FRESH:
                return count * step, count * step + 8
            around = 1 if self.number("write") or step > 16 else 16
            return count / around, 2 * count + 8
        if work != "cycle" or self.number("slots", 1) > 1 or self.number("grown"):
            return None
        if any(part in name for part in ("DONTNEED", "fork", "default", "batches")):
            return 0.9 * k, None
        steady = self.words.get("pages") == "same"
        if "uffd" in name:
            # Its handler fills 64 KiB for a fault.
            blocks = len({i * 37 % (self.number("of_kib", 1024) // 4) // 16
                          for i in range(k)})
            return (0.9 * blocks if steady else 0.9 * min(k, 1)), k + 4
        if name in (SCAN, MEMCPY) or "keep resident" in name or "mended" in name:
            # What was written stays, in so far as it is kept. Wasmtime's own
            # structures are beside it.
            kept = steady and self.number("of_kib", 1024) == 1024
            own = 0.1 if contender.family == "C++" else 1
            return 0, own + (0.01 * k if kept else k)
        if steady and name not in ("firsttouch: tracking async",
                                   "firsttouch: mappings-drop",
                                   "firsttouch: mappings-scan"):
            return 0, 0.1 + 0.01 * k
        return None


def cycles(section, more, suffix, counts, **options):
    """Rows of cycles. A fork takes as long as a thousand of these: one has it."""
    rows = []
    for pages in ("same", "others", "mixed"):
        for k in (32,) if pages == "mixed" else counts:
            if k or pages == "same":
                usual = {"cycles": CYCLES.get(k, 250),
                         "without": () if (section, k) == ("recycle", 16) else ("fork",)}
                rows.append(Row(section, f"{pages}, k={k}{suffix}",
                                f"work=cycle pages={pages} k={k}{more}", **usual | options))
    return rows


def all_rows():
    rows = cycles("recycle", "", "", CYCLES, count=True, variants="all")
    rows += cycles("recycle, 4 MiB", " of_kib=4096 memory_kib=4096", " of 4 MiB",
                   list(CYCLES)[1:], count=True, variants="all")
    rows += cycles("whole pages", " whole=1", ", all of each page", (1, 16, 64, 256))
    for new, image in ((0, "known image"), (1, "new image")):
        for k in CYCLES:
            rows.append(Row("first cycle", f"of a slot, {image}, k={k}",
                            f"work=first new={new} k={k} slots=32", variants="all",
                            without=("limit", "fork")))
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
                    + (("anonymous",) if first else () if step > 1 else (FRESH,)),
                    variants=(COPIED, COPIED_HANDLER, HANDLER, UNMASKED),
                    without=("on Wasmtime",)))
    for write, access in enumerate(("read", "write")):
        rows.append(Row("trap", f"by {access}, and siglongjmp", f"work=traps write={write}",
                        cycles=400, only=(OURS["C++"], SEGV), family="C++"))
    rows.append(Row("trap", "repeated", "work=traps", family="Wasmtime", cycles=400))
    rows.append(Row("trap", "the first of an instance", "work=traps", value="first_ns",
                    family="Wasmtime", cycles=50))
    for order in ("overlapping", "waiting"):
        rows.append(Row("lookup", f"an address in 16 pools, {order}",
                        f"work=locate order={order}", value="lookup_ns", **ALONE))
    for grown in (1, 16):
        rows.append(Row("growth", f"by {grown * 64} KiB in each cycle, all written",
                        f"work=cycle k=0 grown={grown} max_kib=8192", count=True,
                        cycles=400 // grown + 40, without=("limit", "fork")))
    # Long enough that threads which share a core take turns.
    rows += cycles("threads", " ms=40 parts=1", "", (1, 16, 64), value="per_second",
                   cycles=1_000_000, each=("threads", (1, 2, 4, 8)),
                   without=("fork", "batches", "0.33", "keep, scan"))
    rows.append(Row("many images", "1,000 of 64 KiB over 64 slots, k=4",
                    "work=cycle k=4 image_kib=64 images=1000 slots=64", cycles=640,
                    without=("limit", "fork")))
    rows.append(Row("more than the caches hold", "64 slots, 1 MiB changed in each",
                    "work=cycle k=256 slots=64", cycles=64, without=("fork",)))
    for slots in (100, 1000, 10000):
        rows.append(Row("many slots", f"{slots:,}, k=16, one round",
                        f"work=many slots={slots} k=16", value="lease_ns", rounds=1,
                        without=("limit", "fork", "batches", "memcpy")))
    for k in CYCLES:
        rows.append(Row("idle slots", f"64, k={k}, one round",
                        f"work=many slots=64 k={k}", value="idle_private_kib", rounds=1,
                        variants="all", without=("limit", "fork", "batches")))
    for most, max_kib, stride_kib in (("4 GiB", 4 << 20, 6 << 20),
                                      ("at most 4 MiB", 4096, 4096 + 64)):
        rows.append(Row(
            "idle slots", f"10,000 of {most}, 16 pages read, 4 changed",
            f"work=many slots=10000 k=4 reads=16 memory_kib=4096 max_kib={max_kib} "
            f"stride_kib={stride_kib}", value="idle_private_kib", rounds=1, **ALONE))
    for pages in ("same", "others"):
        rows.append(Row("SQLite", f"{pages} rows", f"work=sqlite pages={pages}",
                        value="mean_ns", cycles=30, count=True, variants=(COPIED,),
                        without=("limit", "fork")))
    for slots in (64, 10000):
        rows.append(Row("a new pool", f"of {slots:,} slots, until its first guest runs",
                        f"work=create slots={slots}", value="all_ns", fresh=True, **ALONE))
    for pages, which in (("same", "the rows that it learned from"),
                         ("others", "other rows")):
        for cache in ("warm", "cold") if pages == "same" else ("warm",):
            rows.append(Row("fresh process",
                            f"SQLite from a file, page cache {cache}, {which}",
                            f"work=start pages={pages} cache={cache}", value="all_ns",
                            fresh=True, variants=(NO_SET,), family="C++",
                            only=(OURS["C++"], READ_FILE, MAP_FILE)))
    rows.append(Row("image files", "open and bind, all pages stored", "work=size",
                    value="all_ns", fresh=True, each=("mib", (1, 64, 1024)), **ALONE))
    rows.append(Row("image files", "50 that share nine tenths of their pages, in a store",
                    "work=store images=50 mib=4", value="files", rounds=1, **ALONE))
    for what, title in (("bytes", "build one from bytes"),
                        ("write", "write one, with digests, synced"),
                        ("verify", "open one and verify all"),
                        ("copy", "open one as a copy")):
        rows.append(Row("image files", f"{title}, 64 MiB", f"work=build what={what} mib=64",
                        value="mean_ns", **ALONE))
    for what, pages, title in (
            ("copy", 256, "memcpy of an image of 1 MiB"),
            ("read", 256, "to read 1 MiB and its image"),
            ("write", 256, "first writes to 256 pages, protected asynchronously"),
            ("scan", 256, "a scan of 256 pages"), ("scan", 1024, "a scan of 1024 pages"),
            ("protect", 256, "to protect 256 pages"),
            ("protect", 1024, "to protect 1024 pages")):
        rows.append(Row("what bounds it", title, f"work=floor what={what} pages={pages}",
                        value="mean_ns", cycles=100, only=("the machine",), family="C++"))
    return rows
