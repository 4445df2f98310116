#!/usr/bin/env python3
"""Runs programs on another kernel, in a virtual machine without acceleration.

  boot.py --series=6.1 [--kernel=PATH] [--memory_mib=N] [--seconds=N] \\
      COMMAND...

A COMMAND is a program of the runfiles and its arguments, in one word; with ?
behind it, exit code 1 is success, too (doctor: works with restrictions). The
machine's file system is an initial RAM disk of the runfiles, the shared
libraries that their programs name, and //tests/kernels:init, which runs the
commands one after another. The test fails if a command does, or if the machine
does not reach the end.

Without a kernel of the series, or without QEMU, the test is skipped, and says
which of them is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xml.sax.saxutils

QEMU = "qemu-system-x86_64"
INIT = "tests/kernels/init"


def write_xml(suite, cases):
    """Tells Bazel of cases: (name, kind, text), kind one of ok, failed, skipped."""
    path = os.environ.get("XML_OUTPUT_FILE")
    if not path:
        return
    quote = xml.sax.saxutils.quoteattr
    with open(path, "w", encoding="utf-8") as out:
        out.write("<testsuites><testsuite name=%s>\n" % quote(suite))
        for name, kind, text in cases:
            out.write("<testcase classname=%s name=%s>" % (quote(suite), quote(name)))
            if kind == "skipped":
                out.write("<skipped message=%s/>" % quote(text))
            elif kind == "failed":
                out.write("<failure message=%s/>" % quote(text))
            out.write("</testcase>\n")
        out.write("</testsuite></testsuites>\n")


def skip(suite, why):
    print("SKIPPED: " + why)
    write_xml(suite, [("boots", "skipped", why)])
    sys.exit(0)


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(paths):
    """The shared libraries that the programs at `paths` are started with."""
    found = set()
    for path in paths:
        out = subprocess.run(["ldd", path], capture_output=True, text=True)
        found.update(re.findall(r"(/\S+) \(0x", out.stdout))
    return found


def make_disk(folder, commands):
    """Fills `folder` with the machine's files; returns the archive's path."""
    root = os.path.join(folder, "root")
    runfiles = os.path.join(root, "runfiles")
    programs = []
    for at, _, names in os.walk(".", followlinks=True):
        for name in names:
            source = os.path.join(at, name)
            if not os.path.isfile(source) or name.startswith("vmlinuz"):
                continue
            target = os.path.join(runfiles, source)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(source, target)
            if is_elf(source):
                programs.append(source)
    for library in libraries(programs):
        target = root + library
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(os.path.realpath(library), target)
    shutil.copy(INIT, os.path.join(root, "init"))
    with open(os.path.join(root, "commands"), "w", encoding="utf-8") as out:
        out.writelines(command.rstrip("?") + "\n" for command in commands)
    os.makedirs(os.path.join(root, "etc"), exist_ok=True)
    for file in ("/etc/passwd", "/etc/group", "/bin/sh", "/usr/bin/true"):
        if os.path.exists(file):
            os.makedirs(os.path.dirname(root + file), exist_ok=True)
            shutil.copy(file, root + file)
    archive = os.path.join(folder, "disk.cpio")
    names = subprocess.run(["find", ".", "-print0"], cwd=root, check=True,
                           capture_output=True).stdout
    with open(archive, "wb") as out:
        subprocess.run(["cpio", "--quiet", "--null", "-o", "-H", "newc"],
                       cwd=root, input=names, stdout=out, check=True)
    return archive


def boot(kernel, archive, memory_mib, seconds):
    """Runs the machine to its end; prints and returns what its console prints."""
    command = [
        QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
        "-m", str(memory_mib), "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", kernel, "-initrd", archive,
        # A kernel that panics ends the machine at once.
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off rootfstype=ramfs",
    ]
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    watchdog = threading.Timer(seconds, machine.kill)
    watchdog.start()
    lines = []
    for line in machine.stdout:
        lines.append(line.decode(errors="replace").replace("\r", ""))
        print(lines[-1], end="", flush=True)
    machine.wait()
    watchdog.cancel()
    return "".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", required=True)
    parser.add_argument("--kernel", default="")
    parser.add_argument("--memory_mib", type=int, default=4096)
    parser.add_argument("--seconds", type=int, default=1500)
    parser.add_argument("commands", nargs="+")
    args = parser.parse_args()
    suite = "linux-" + args.series

    if not args.kernel:
        skip(suite, "there is no package of Linux %s: apt-get download found none "
                    "when @kernels was made (`bazelw sync --only=kernels` tries "
                    "again)" % args.series)
    for program, package in ((QEMU, "qemu-system-x86"), ("cpio", "cpio")):
        if not shutil.which(program):
            skip(suite, "there is no %s; Debian's package %s has it" %
                 (program, package))

    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
        archive = make_disk(folder, args.commands)
        log = boot(args.kernel, archive, args.memory_mib, args.seconds)

    cases = []
    release = re.search(r"^@kernel (\S+)$", log, re.M)
    if not release:
        cases.append(("boots", "failed", "the kernel did not start the programs"))
    elif not release.group(1).startswith(args.series + "."):
        cases.append(("boots", "failed", "Linux %s is not of the series %s" %
                      (release.group(1), args.series)))
    for index, command in enumerate(args.commands):
        name = os.path.basename(command.split()[0]).rstrip("?")
        end = re.search(r"^@end %d ((\S+ \d+) after .*)$" % index, log, re.M)
        good = ("exited 0", "exited 1") if command.endswith("?") else ("exited 0",)
        if not end:
            cases.append((name, "failed", "did not end"))
        else:
            cases.append((name, "ok" if end.group(2) in good else "failed",
                          end.group(1)))
    if release and not re.search(r"^@done$", log, re.M):
        cases.append(("ends", "failed", "the machine stopped before its end"))
    write_xml(suite, cases)

    for name, kind, text in cases:
        print("%s: %s%s" % (name, kind, " (%s)" % text if text else ""))
    print("%s, %d s" % (release.group(1) if release else "no kernel",
                        time.monotonic() - start))
    sys.exit(any(kind == "failed" for _, kind, _ in cases))


if __name__ == "__main__":
    main()
