"""Says what report.py has measured: as text, as one page that needs nothing else, and
as the tables of docs/performance.md."""

import html
import io
import statistics

from report_rows import CYCLES, OURS, is_variant

# What a row compares: in which unit, and how much of what is measured one is.
UNITS = {
    "memory_ns": ("us of memory's part of a cycle", 1000),
    "touch_page_ns": ("us for a page", 1000),
    "first_ns": ("us", 1000),
    "all_ns": ("us until the first request or touch is done", 1000),
    "mean_ns": ("us", 1000),
    "lookup_ns": ("ns", 1),
    "per_second": ("1,000 cycles a second, all threads", 1000),
    "lease_ns": ("us of a lease", 1000),
    "files": ("times the bytes of one file on the disk", 1),
    "idle_private_kib": ("KiB private to an idle slot", 1),
}
# What a contender has besides what is compared, in short: of all cycles, and of the rows
# with a pool of many slots or a new one.
COLUMNS = {
    "faults": "flt", "calls": "calls", "signals": "sigs", "shootdowns": "TLB",
    "beside_first": "/1st", "beside_second": "/2nd", "acquire_p999_ns": "acqp999",
    "release_p999_ns": "relp999", "create_ns": "create", "open_ns": "open",
    "bind_ns": "bind", "query_ns": "query", "acquire_ns": "acquire", "touch_ns": "touch",
    "release_ns": "release", "busy_private_kib": "KiB", "book_bytes": "book B",
    "idle_private_kib": "idleKiB", "busy_pss_kib": "pssKiB", "idle_tables_kib": "tabKiB",
    "idle_mappings": "maps"}
WORDS = {"faults": "page faults", "calls": "system calls", "shootdowns": "TLB shootdowns",
         "beside_first": "beside the first of these rows",
         "beside_second": "beside the second"}


def shown(number, value):
    number /= UNITS[value][1]
    return f"{number:,.2f}" if number < 100 else f"{number:,.0f}"


def further(end, field):
    """A number besides what is compared, of the rounds the median; None without it."""
    if field in end:
        return end[field]
    values = [a[field] for a in end["answers"] if field in a]
    if not values:
        return None
    return statistics.median(values) / (1000 if field.endswith("_ns") else 1)


def row_lines(row, in_words=False):
    """A row's table, first the names of its columns; and who has no number, and why."""
    good = {n: end for n, end in row["contenders"].items() if "median" in end}
    mine = good.get(OURS["C++"], {}).get("median")
    fields = [f for f in COLUMNS if any(further(e, f) is not None for e in good.values())]
    lines = [["", "median"] + ["quartiles"] * in_words + ["x"] * bool(mine)
             + [WORDS.get(f, f.replace("_", " ")) if in_words else COLUMNS[f]
                for f in fields]]
    for name, end in good.items():
        median, low, high = (shown(end[part], row["value"])
                             for part in ("median", "low", "high"))
        numbers = [further(end, f) for f in fields]
        lines.append([name, median] + [f"{low} to {high}"] * in_words
                     + ([f"{end['median'] / mine:.2f}"] if mine else [])
                     + ["" if n is None else f"{n:,.2f}" for n in numbers])
    return lines, {n: end.get("failed", "nothing")
                   for n, end in row["contenders"].items() if n not in good}


def ratio_lines(report):
    """How many times as fast as the best other ours are."""
    return [["work", "ours", "best other", "times as fast", "in the rounds"]] + [
        [f"{row['section']}: {row['title']}", ours, ratio["best"],
         f"{ratio['median']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}"]
        for row in report["rows"] for ours, ratio in row["ratios"].items()]


def goal_lines(report):
    """Each goal: row, what is measured, bound, measured, and whether it is reached."""
    kinds = {"inverse": "{} / ours", "time": "ours / {}", "time of copied": "copied / {}",
             "recycle": "acquire and release / {}", "query": "first query / {}"}
    lines = [["goal", "what", "to reach", "measured", ""]]
    for goal in report["goals"]:
        above = goal["sense"] == "above"
        otherwise = goal["what"].replace("_", " ")
        if goal["other"]:
            otherwise += " above {}" if above else " / {}"
        lines.append([goal["row"], kinds.get(goal["what"], otherwise).format(goal["other"]),
                      f"{'<=' if above else goal['sense']}{goal['bound']:g}",
                      " ".join(f"{m:.2f}" if abs(m) < 1000 else f"{m:,.0f}"
                               for m in goal["measured"]),
                      "ok" if goal["reached"] else "NOT REACHED"])
    return lines


def text_table(lines):
    """The first cells at the left, the others at the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return ["  ".join([line[0].ljust(widths[0])]
                      + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])
            for line in lines]


def text(report):
    """Tables and goals, for a terminal."""
    lines = [f"{what}: {told}" for what, told in report["about"].items()]
    lines += ["x: as a multiple of firsttouch's; flt: page faults, calls: system calls,",
              "sigs: signals, TLB: shootdowns of the machine, all per cycle; what the other",
              "columns are says bench/README.md; times among them are in us"]
    for row in report["rows"]:
        table, failed = row_lines(row)
        lines += ["", f"{row['section']}: {row['title']} ({UNITS[row['value']][0]})"]
        lines += text_table(table) if len(table) > 1 else []
        lines += [f"  {name}: {why}" for name, why in failed.items()]
    goals = goal_lines(report)[1:]
    if goals:
        lines += ["", "goals of firsttouch with default options; of a time by the means of",
                  "the cycles and by their medians, both of which must be within the bound"]
        last = None
        for row, what, bound, measured, reached in goals:
            lines += [row] if row != last else []
            lines.append(f"  {what:42}{bound:>9}{measured:>13}  {reached}")
            last = row
        reached = sum(goal["reached"] for goal in report["goals"])
        lines.append(f"{reached} of {len(goals)} goals that were measured are reached")
    return "\n".join(lines) + "\n"


def markdown(report):
    """The tables of docs/performance.md."""
    lines = [f"{what}: {told}  " for what, told in report["about"].items()]
    for table in (ratio_lines(report), goal_lines(report)):
        head, *rest = (f"| {' | '.join(line)} |" for line in table)
        lines += ["", head, "| --- " * len(table[0]) + "|", *rest]
    return "\n".join(lines) + "\n"


def svg(draw, height):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False,
                                "svg.hashsalt": "firsttouch"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, height), layout="constrained")
    draw(axes)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return drawn.getvalue().partition("<svg")[2]


def line_plot(axes, rows, pages, colors):
    """The time of each contender by the number of pages."""
    for name, color in colors.items():
        points = [(int(r["request"].split(" k=")[1].split()[0]),
                   r["contenders"][name]["median"] / 1000)
                  for r in rows if "median" in r["contenders"].get(name, {})]
        if points:
            axes.plot(*zip(*points), color=color, label=name, marker="o", markersize=3,
                      linewidth=2.4 if name in OURS.values() else 1.1,
                      linestyle="--" if "limit" in name else "-")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set_xticks(list(CYCLES), labels=list(CYCLES))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"pages changed, {pages} each time")
    axes.set_ylabel("us of memory's part")
    axes.grid(alpha=0.25)
    axes.figure.legend(fontsize=7, loc="outside lower center", ncols=2, frameon=False)


def bar_plot(axes, ends, value, colors):
    """The median of each contender, and its quartiles."""
    words, unit = UNITS[value]
    for name, end in reversed(ends.items()):
        median, low, high = (end[part] / unit for part in ("median", "low", "high"))
        axes.barh(name, median, color=colors[name], xerr=[[median - low], [high - median]],
                  error_kw={"elinewidth": 0.8})
    medians = [end["median"] for end in ends.values()]
    if max(medians) > 30 * min(medians) > 0:
        axes.set_xscale("log")
    axes.set_xlabel(words)


def plots(rows, colors):
    """What is seen at once of a section's rows, each with its title."""
    for pages in ("same", "others"):
        some = [r for r in rows if r["title"].startswith(f"{pages}, k=")
                and r["value"] == "memory_ns"]
        if some:
            yield (f"{pages} pages each time",
                   svg(lambda axes: line_plot(axes, some, pages, colors), height=5.2))
            rows = [r for r in rows if r not in some]
    for row in rows:
        ends = {n: e for n, e in row["contenders"].items()
                if "median" in e and not is_variant(n)}
        if ends:
            yield row["title"], svg(lambda axes: bar_plot(axes, ends, row["value"], colors),
                                    height=0.9 + 0.24 * len(ends))


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem;
  padding: 1rem; color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.plots figure { margin: 0; } .plots svg { width: 100%; height: auto; }
figcaption, .ours, dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
.scroll { overflow-x: auto; } .failed { color: #a33; }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
td { padding: .2rem .5rem; border-bottom: 1px solid #e4e4e4; text-align: right; }
td:first-child { text-align: left; white-space: normal; min-width: 8rem; }
"""


def html_table(lines):
    out = ["<div class=scroll><table>"]
    for line in lines:
        ours = " class=ours" if line[0] in OURS.values() else ""
        out.append(f"<tr{ours}>" + "".join(f"<td>{html.escape(c)}" for c in line))
    return "".join(out) + "</table></div>"


def page(report):
    e = html.escape
    rows = report["rows"]
    import matplotlib

    names = dict.fromkeys(n for r in rows for n in r["contenders"] if not is_variant(n))
    colors = {n: matplotlib.colormaps["tab20"](i % 20) for i, n in enumerate(names)}
    out = ["<!doctype html><html lang=en><meta charset=utf-8>"
           "<meta name=viewport content='width=device-width,initial-scale=1'>"
           f"<title>firsttouch beside its peers</title><style>{STYLE}</style>"
           "<h1>firsttouch beside its peers</h1><dl>"]
    out += [f"<dt>{e(what)}<dd>{e(told)}" for what, told in report["about"].items()]
    out.append("</dl><p>All contenders take turns within each round. Of a round the mean "
               "of its cycles counts. A ratio is taken within a round; the median of the "
               "rounds counts. Memory's part of a cycle in Wasmtime is what it takes "
               "longer than with a module that has no memory. Every contender has read "
               "the same bytes, and passes on a clean memory; one that has not, or whose "
               "counters show that the work did not take place, has no number.")
    out += ["<h2>Against the best other</h2>", html_table(ratio_lines(report)),
            "<h2>Goals</h2>", html_table(goal_lines(report))]
    for section in dict.fromkeys(r["section"] for r in rows):
        mine = [r for r in rows if r["section"] == section]
        out.append(f"<h2>{e(section)}</h2><div class=plots>")
        out += [f"<figure><figcaption>{e(title)}</figcaption><svg{plot}</figure>"
                for title, plot in plots(mine, colors)]
        out.append("</div>")
        for row in mine:
            lines, failed = row_lines(row, in_words=True)
            out.append(f"<details><summary>{e(row['title'])}</summary>"
                       f"<p>{e(UNITS[row['value']][0])}{html_table(lines)}")
            out += [f"<p class=failed>{e(n)}: {e(why)}" for n, why in failed.items()]
            out.append("</details>")
    return "\n".join(out)
