"""Says what report.py has measured: as text, as one page that needs nothing else, and
as the tables of docs/performance.md."""

import html
import io

from report_rows import CYCLES, OURS, is_variant

# What a contender has besides what is compared, all per cycle; and of the rows with a
# pool of many slots or a new one.
COUNTS = {"faults": ("page faults", "flt"), "calls": ("system calls", "calls"),
          "signals": ("signals", "sigs"), "shootdowns": ("TLB shootdowns", "TLB"),
          "beside_first": ("beside the first of these rows", "/1st"),
          "beside_second": ("beside the second", "/2nd")}
DETAILS = {"acquire_p999_ns": "acqp999", "release_p999_ns": "relp999",
           "create_ns": "create", "open_ns": "open", "bind_ns": "bind",
           "query_ns": "query", "acquire_ns": "acquire", "touch_ns": "touch",
           "release_ns": "release", "busy_private_kib": "KiB", "book_bytes": "book B",
           "idle_private_kib": "idleKiB", "busy_pss_kib": "pssKiB",
           "idle_tables_kib": "tabKiB", "idle_mappings": "maps"}


# What is printed as it is; of all else, thousandths are.
WHOLE = ("idle_private_kib", "files", "lookup_ns")


def shown(number, value):
    if value in WHOLE:
        return f"{number:,.2f}"
    if value == "per_second":
        return f"{number / 1000:,.1f}"
    return f"{number / 1000:,.2f}" if number < 100_000 else f"{number / 1000:,.0f}"


def details(end):
    """Medians over the rounds, times in us."""
    found = {}
    for field in DETAILS:
        values = sorted(a[field] for a in end["answers"] if field in a)
        if values:
            unit = 1000 if field.endswith("_ns") else 1
            found[field] = values[len(values) // 2] / unit
    return found


UNITS = {
    "memory_ns": "us of memory's part of a cycle",
    "touch_page_ns": "us for a page",
    "first_ns": "us",
    "all_ns": "us until the first request or touch is done",
    "mean_ns": "us",
    "lookup_ns": "ns",
    "per_second": "1,000 cycles a second, all threads",
    "lease_ns": "us of a lease",
    "files": "times the bytes of one file on the disk",
    "idle_private_kib": "KiB private to an idle slot",
}
COLORS = ["#0b6e4f", "#b23a48", "#3d5a80", "#bc6c25", "#6d597a", "#457b9d",
          "#8a817c", "#2a9d8f", "#e07a5f", "#577590", "#9c6644", "#7f5539", "#555555"]


def svg(draw, width=5.2, height=3.4):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False,
                                "svg.hashsalt": "firsttouch"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    draw(axes)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    drawn = text.getvalue()
    return drawn[drawn.index("<svg"):]


def line_plot(rows, pages, colors):
    import matplotlib.ticker

    def draw(axes):
        for name, color in colors.items():
            if is_variant(name):
                continue
            points = [(int(r["request"].split(" k=")[1].split()[0]),
                       r["contenders"][name]["median"] / 1000)
                      for r in rows
                      if "median" in r["contenders"].get(name, {})]
            if points:
                ours = name in OURS.values()
                axes.plot(*zip(*points), color=color, label=name,
                          marker="o", markersize=3, linewidth=2.4 if ours else 1.1,
                          linestyle="--" if "limit" in name else "-")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("log")
        axes.set_xticks(list(CYCLES))
        axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set_xlabel(f"pages changed, {pages} each time")
        axes.set_ylabel("us of memory's part")
        axes.grid(alpha=0.25)
        axes.figure.legend(fontsize=7, loc="outside lower center", ncols=2,
                           frameon=False)

    return svg(draw, height=5.2)


def bar_plot(row, colors):
    ends = {n: e for n, e in row["contenders"].items()
            if "median" in e and not is_variant(n)}

    def draw(axes):
        names = list(reversed(ends))
        unit = 1 if row["value"] in WHOLE else 1000
        values = [ends[n]["median"] / unit for n in names]
        spread = [[v - ends[n]["low"] / unit for n, v in zip(names, values)],
                  [ends[n]["high"] / unit - v for n, v in zip(names, values)]]
        axes.barh(names, values, color=[colors[n] for n in names],
                  xerr=[[max(s, 0) for s in side] for side in spread],
                  error_kw={"elinewidth": 0.8})
        if max(values) > 30 * min(values) > 0:
            axes.set_xscale("log")
        axes.set_xlabel(UNITS[row["value"]])

    return svg(draw, height=0.9 + 0.24 * len(ends))


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem;
  padding: 1rem; color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.plots figure { margin: 0; } .plots svg { width: 100%; height: auto; }
figcaption { font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
td, th { padding: .2rem .5rem; border-bottom: 1px solid #e4e4e4; text-align: right; }
td:first-child, th:first-child { text-align: left; white-space: normal; min-width: 8rem; }
tr.ours td { font-weight: 600; } .failed { color: #a33; white-space: normal;
  text-align: left; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
"""


def row_table(row):
    e = html.escape
    good = [end for end in row["contenders"].values() if "median" in end]
    extra = [x for x in COUNTS if any(x in end for end in good)]
    fields = [x for x in DETAILS if any(x in details(end) for end in good)]
    lines = ["<tr><th></th><th>median</th><th>quartiles</th>"
             + "".join(f"<th>{e(COUNTS[x][0])}</th>" for x in extra)
             + "".join(f"<th>{e(f.replace('_', ' '))}</th>" for f in fields) + "</tr>"]
    for name, end in row["contenders"].items():
        if "median" not in end:
            lines.append(f"<tr><td>{e(name)}</td><td class=failed colspan=9>"
                         f"{e(end.get('failed', 'nothing'))}</td></tr>")
            continue
        cells = [shown(end["median"], row["value"]),
                 f"{shown(end['low'], row['value'])} to {shown(end['high'], row['value'])}"]
        cells += [f"{end[x]:.2f}" if x in end else "" for x in extra]
        found = details(end)
        cells += [f"{found[f]:,.2f}" if f in found else "" for f in fields]
        ours = " class=ours" if name in OURS.values() else ""
        lines.append(f"<tr{ours}><td>{e(name)}</td>"
                     + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return ("<div class=scroll><table><caption>" + e(UNITS[row["value"]])
            + "</caption>" + "".join(lines) + "</table></div>")


def ratio_table(rows):
    e = html.escape
    lines = ["<tr><th>work</th><th>times as fast</th><th>ours</th><th>best other</th>"
             "<th>spread of the rounds</th></tr>"]
    for row in rows:
        for name, ratio in row["ratios"].items():
            lines.append(
                f"<tr><td>{e(row['section'])}: {e(row['title'])}</td>"
                f"<td>{ratio['median']:.2f}</td><td>{e(name)}</td>"
                f"<td>{e(ratio['best'])}</td>"
                f"<td>{ratio['low']:.2f} to {ratio['high']:.2f}</td></tr>")
    return "<div class=scroll><table>" + "".join(lines) + "</table></div>"


def goal_lines(report):
    """Each goal as (row, what is measured, bound, measured, whether it is reached)."""
    for goal in report["goals"]:
        kinds = {"inverse": "{} / ours", "time": "ours / {}", "time of copied": "copied / {}",
                 "recycle": "acquire and release / {}", "query": "first query / {}"}
        what = kinds.get(goal["what"], goal["what"].replace("_", " ")
                         + (" / {}" if goal["other"] else "")).format(goal["other"])
        if goal["sense"] == "above":
            what = what.replace(" / ", " above ")
        sense = goal["sense"].replace("above", "<=")
        yield (goal["row"], what, f"{sense}{goal['bound']:g}",
               " ".join(f"{m:.2f}" if abs(m) < 1000 else f"{m:,.0f}"
                        for m in goal["measured"]), goal["reached"])


def table(lines):
    """Lines of cells as text, the first at the left and the others at the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return ["  ".join([line[0].ljust(widths[0])]
                      + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])
            for line in lines]


def text(report):
    """Tables and goals, for a terminal."""
    lines = [f"{what}: {told}" for what, told in report["about"].items()]
    lines += ["x: as a multiple of firsttouch's; flt: page faults, calls: system calls, sigs:",
              "signals, TLB: shootdowns of the machine, all per cycle; what the other columns",
              "are says bench/README.md; times among them are in us"]
    for row in report["rows"]:
        good = {n: end for n, end in row["contenders"].items() if "median" in end}
        mine = good.get(OURS["C++"], {}).get("median")
        extra = [x for x in COUNTS if any(x in end for end in good.values())]
        fields = [x for x in DETAILS if any(x in details(end) for end in good.values())]
        cells = [["", "median"] + ["x"] * bool(mine) + [COUNTS[x][1] for x in extra]
                 + [DETAILS[f] for f in fields]]
        for name, end in good.items():
            found = details(end)
            cells.append([name, shown(end["median"], row["value"])]
                         + ([f"{end['median'] / mine:.2f}"] if mine else [])
                         + [f"{end[x]:.2f}" if x in end else "" for x in extra]
                         + [f"{found[f]:,.2f}" if f in found else "" for f in fields])
        lines += ["", f"{row['section']}: {row['title']} ({UNITS[row['value']]})"]
        lines += table(cells) if good else []
        lines += [f"  {name}: {end.get('failed', 'nothing')}"
                  for name, end in row["contenders"].items() if "median" not in end]
    goals = list(goal_lines(report))
    if goals:
        lines += ["", "goals of firsttouch with default options; of a time by the means of",
                  "the cycles and by their medians, both of which must be within the bound"]
    for i, (row, what, bound, measured, reached) in enumerate(goals):
        lines += [row] if i == 0 or goals[i - 1][0] != row else []
        lines.append(f"  {what:42}{bound:>9}{measured:>13}  "
                     + ("ok" if reached else "NOT REACHED"))
    if goals:
        reached = sum(goal[-1] for goal in goals)
        lines.append(f"{reached} of {len(goals)} goals that were measured are reached")
    return "\n".join(lines) + "\n"


def markdown(report):
    """The tables of docs/performance.md."""
    lines = [f"{what}: {text}  " for what, text in report["about"].items()]
    for ours in OURS.values():
        lines += ["", f"| {ours} | beside | times as fast | in the rounds |",
                  "| --- | --- | --- | --- |"]
        for row in report["rows"]:
            ratio = row["ratios"].get(ours)
            if ratio:
                lines.append(
                    f"| {row['section']}: {row['title']} | {ratio['best']} | "
                    f"{ratio['median']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} |")
    lines += ["", "| goal | what | to reach | measured |", "| --- | --- | --- | --- |"]
    lines += [f"| {row} | {what} | {bound} | {measured}{'' if reached else ' **missed**'} |"
              for row, what, bound, measured, reached in goal_lines(report)]
    return "\n".join(lines) + "\n"


def page(report):
    e = html.escape
    rows = report["rows"]
    names = list(dict.fromkeys(n for r in rows for n in r["contenders"]))
    colors = {n: COLORS[i % len(COLORS)] for i, n in enumerate(names)}
    out = ["<!doctype html><html lang=en><meta charset=utf-8>"
           "<meta name=viewport content='width=device-width,initial-scale=1'>"
           f"<title>firsttouch beside its peers</title><style>{STYLE}</style>"
           "<h1>firsttouch beside its peers</h1><dl>"]
    for what, text in report["about"].items():
        out.append(f"<dt>{e(what)}</dt><dd>{e(text)}</dd>")
    out.append("</dl><p>All contenders take turns within each round. Of a round "
               "the mean of its cycles counts. A ratio is taken within a round; the median of the rounds counts. Memory's part of a "
               "cycle in Wasmtime is what it takes longer than with a module that has "
               "no memory. Every contender has read the same bytes, and passes on a "
               "clean memory; one that has not, or whose counters show that the work "
               "did not take place, has no number.</p><h2>Against the best other</h2>")
    out.append(ratio_table(rows))
    out.append("<h2>Goals</h2><div class=scroll><table>")
    for row, what, bound, measured, reached in goal_lines(report):
        out.append(f"<tr><td>{e(row)}</td><td>{e(what)}</td><td>{e(bound)}</td>"
                   f"<td>{measured}</td><td>{'' if reached else 'missed'}</td></tr>")
    out.append("</table></div>")
    for section in dict.fromkeys(r["section"] for r in rows):
        mine = [r for r in rows if r["section"] == section]
        out.append(f"<h2>{e(section)}</h2><div class=plots>")
        if section in ("recycle", "recycle, 4 MiB", "whole pages"):
            for pages in ("same", "others"):
                some = [r for r in mine if r["title"].startswith(pages)]
                if some:
                    out.append(f"<figure><figcaption>{pages} pages each time</figcaption>"
                               f"{line_plot(some, pages, colors)}</figure>")
            plotted = [r for r in mine if r["title"].startswith("mixed")]
        else:
            plotted = mine
        for row in plotted:
            if any("median" in end for end in row["contenders"].values()):
                out.append(f"<figure><figcaption>{e(row['title'])}</figcaption>"
                           f"{bar_plot(row, colors)}</figure>")
        out.append("</div>")
        for row in mine:
            out.append(f"<details><summary>{e(row['title'])}</summary>"
                       f"{row_table(row)}</details>")
    return "\n".join(out)
