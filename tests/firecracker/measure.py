"""Firecracker's microVMs, restored with their memory filled by different servers.

Called by run.sh, which says what the arguments are. Prints tables; ends with 1 if
something is wrong (a page with other bytes, a guest that does not go on), never for
how fast something was.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

MEMORY_MIB = 256
# Where Firecracker puts the registers of its first device.
BALLOON = 0xC0001000

WRONG = []


def wrong(what):
    WRONG.append(what)
    print("WRONG:", what, flush=True)


class Vm:
    """A Firecracker process."""

    def __init__(self, program, folder):
        self.api_socket = str(folder / f"api-{time.monotonic_ns()}.sock")
        self.errors = open(folder / "firecracker.log", "ab")
        self.process = subprocess.Popen(
            [program, "--api-sock", self.api_socket, "--level", "Warn"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors)
        self.lines = []  # (when, text)
        self.changed = threading.Condition()
        self.ended = False
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            try:
                self.ask("GET", "/")
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise RuntimeError("firecracker has ended") from None
                time.sleep(0.002)

    def _listen(self):
        for line in self.process.stdout:
            with self.changed:
                text = line.decode("latin1").strip()
                self.lines.append((time.monotonic(), text))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def ask(self, method, path, body=None, timeout=60):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self.api_socket)
            text = json.dumps(body) if body is not None else ""
            connection.sendall(
                (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
                 "Content-Type: application/json\r\n"
                 f"Content-Length: {len(text)}\r\n\r\n{text}").encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65536)
            status = int(answer.split()[1])
            if status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.decode()}")

    def wait(self, pattern, seconds=60, start=0):
        """When a line came that has the pattern, and the line."""
        end = time.monotonic() + seconds
        at = start
        with self.changed:
            while True:
                for when, text in self.lines[at:]:
                    at += 1
                    if re.match(pattern, text):
                        return when, text
                left = end - time.monotonic()
                if self.ended or left <= 0:
                    raise TimeoutError(pattern)
                self.changed.wait(left)

    def pause(self):
        self.ask("PATCH", "/vm", {"state": "Paused"})

    def kib(self, field="Rss"):
        return kib_of(self.process.pid, field)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.errors.close()
        pathlib.Path(self.api_socket).unlink(missing_ok=True)


def kib_of(pid, field):
    for line in open(f"/proc/{pid}/smaps_rollup"):
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


class Server:
    """A process that fills memory, listening at a socket."""

    def __init__(self, words, folder, path):
        self.path = str(path)
        self.log = open(folder / "servers.log", "ab")
        # A server that was killed leaves its socket, which only firsttouchd
        # replaces by itself.
        if "firsttouchd" not in words[0]:
            pathlib.Path(self.path).unlink(missing_ok=True)
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{words[0]} has ended: see servers.log")
            # A probe would be the only client that the example takes.
            if any(line.split()[-1] == self.path and line.split()[3] == "00010000"
                   for line in open("/proc/net/unix")):
                return
            time.sleep(0.002)

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait()
        self.log.close()


class Run:
    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = pathlib.Path(arguments.folder)
        self.serial = 0
        help_text = subprocess.run([arguments.firsttouchd, "--help"], text=True,
                                   capture_output=True, check=True).stdout
        # Where a firsttouchd keeps what another one needs to take over.
        self.takes_over = "--state" in help_text

    # ---- Snapshots ----

    def make(self, name, words, with_balloon=False, wait="TOUCHED 3 "):
        vm = Vm(self.arguments.firecracker, self.folder)
        try:
            vm.ask("PUT", "/machine-config",
                   {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB})
            vm.ask("PUT", "/boot-source",
                   {"kernel_image_path": self.arguments.guest, "boot_args": words})
            if with_balloon:
                vm.ask("PUT", "/balloon",
                       {"amount_mib": 0, "deflate_on_oom": False})
            vm.ask("PUT", "/actions", {"action_type": "InstanceStart"})
            vm.wait(wait)
            vm.pause()
            vm.ask("PUT", "/snapshot/create",
                   {"snapshot_type": "Full", "snapshot_path": self.state(name),
                    "mem_file_path": self.memory(name)}, timeout=300)
        finally:
            vm.end()
        for image in (self.image(name), self.image(name + "-known")):
            subprocess.run([self.arguments.imagetool, "build", self.memory(name),
                            image, "--from=raw"], check=True,
                           stdout=subprocess.DEVNULL)
        return name

    def learn(self, name):
        """Has a guest's touches recorded with the image."""
        image = self.image(name + "-known")
        before = os.stat(image).st_mtime_ns
        server = self.firsttouchd(image, "--record")
        vm = Vm(self.arguments.firecracker, self.folder)
        try:
            self.load(vm, name, "Uffd", server.path)
            vm.wait("TOUCHED ")
        finally:
            vm.end()
        end = time.monotonic() + 60
        while os.stat(image).st_mtime_ns == before:
            if time.monotonic() > end:
                raise TimeoutError("the touches are not kept: see servers.log")
            time.sleep(0.01)
        server.end(signal.SIGTERM)

    def state(self, name):
        return str(self.folder / f"{name}.state")

    def memory(self, name):
        return str(self.folder / f"{name}.mem")

    def image(self, name):
        return str(self.folder / f"{name}.ftimg")

    # ---- Servers ----

    def socket(self):
        self.serial += 1
        return self.folder / f"{self.serial}.sock"

    def firsttouchd(self, image, *words, path=None):
        path = path or self.socket()
        return Server([self.arguments.firsttouchd, "--listen", str(path),
                       "--image", image, *words], self.folder, path)

    def example(self, name, kind="on_demand", path=None):
        path = path or self.socket()
        program = f"{self.arguments.examples}/uffd_{kind}_handler"
        return Server([program, str(path), self.memory(name)], self.folder, path)

    def servers(self, way, name, guests):
        """Which servers so many guests have."""
        if way == "file mapping":
            return []
        if way.startswith("firsttouchd"):
            known = "-known" if way.endswith("working set") else ""
            server = self.firsttouchd(self.image(name + known))
            # One serves many, and knows the digests of what it has served.
            vm = Vm(self.arguments.firecracker, self.folder)
            try:
                self.load(vm, name, "Uffd", server.path)
                vm.wait("TOUCHED ")
            finally:
                vm.end()
            return [server]
        kind = "fault_all" if way == "example, all" else "on_demand"
        return [self.example(name, kind) for _ in range(guests)]

    def load(self, vm, name, kind, path, timeout=60):
        vm.ask("PUT", "/snapshot/load",
               {"snapshot_path": self.state(name),
                "mem_backend": {"backend_type": kind, "backend_path": path},
                "resume_vm": True}, timeout=timeout)

    # ---- What is measured ----

    def sample(self, way, name, guests):
        """Restores so many guests at once, until each has touched its pages."""
        with open(self.memory(name), "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
        servers = self.servers(way, name, guests)
        vms = [Vm(self.arguments.firecracker, self.folder) for _ in range(guests)]
        done = []

        def go(index):
            vm = vms[index]
            if servers:
                self.load(vm, name, "Uffd", servers[index % len(servers)].path)
            else:
                self.load(vm, name, "File", self.memory(name))
            when, text = vm.wait("TOUCHED ")
            if not text.endswith(" 0"):
                wrong(f"{way}: {text}")
            done.append(when)
            vm.pause()

        try:
            start = time.monotonic()
            threads = [threading.Thread(target=go, args=(i,))
                       for i in range(guests)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if len(done) < guests:
                wrong(f"{way}: a guest does not go on")
                return None
            return {"ms": (max(done) - start) * 1000,
                    "vm": sum(vm.kib("Pss") for vm in vms) / guests / 1024,
                    "server": sum(kib_of(s.process.pid, "Pss")
                                  for s in servers) / 1024}
        finally:
            for vm in vms:
                vm.end()
            for server in servers:
                server.end()

    def compare(self, title, name, ways, guests, rounds):
        samples = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                got = self.sample(way, name, guests)
                if got is not None:
                    samples[way].append(got)
        print(f"\n{title}, {rounds} rounds, medians")
        print(f"{'':26}{'ms':>8}{'x':>7}{'MiB a VM':>10}{'MiB servers':>13}")
        for way in ways:
            of_way = samples[way]
            if not of_way:
                continue
            ratio = statistics.median(
                a["ms"] / b["ms"] for a, b in zip(of_way, samples[ways[0]]))
            medians = {key: statistics.median(one[key] for one in of_way)
                       for key in of_way[0]}
            print(f"{way:26}{medians['ms']:8.1f}{ratio:7.2f}"
                  f"{medians['vm']:10.1f}{medians['server']:13.1f}", flush=True)

    def balloon(self, name):
        print("\nballoon: 256 pages given back, and taken again")
        for way in ("firsttouchd", "firsttouchd, working set", "example"):
            servers = self.servers(way, name, 1)
            vm = Vm(self.arguments.firecracker, self.folder)
            try:
                self.load(vm, name, "Uffd", servers[0].path)
                _, given = vm.wait("BALLOON ", 20)
                _, after = vm.wait("TOUCHED ", 20, start=len(vm.lines))
                print(f"{way:26}{given.split()[2]} pages not zero, "
                      f"{after.split()[2]} wrong afterwards", flush=True)
                if way != "example" and not (given.endswith(" 0") and
                                             after.endswith(" 0")):
                    wrong(f"{way}: {given}; {after}")
            except TimeoutError as error:
                print(f"{way:26}the guest does not go on ({error})")
                if way != "example":
                    wrong(f"{way}: no balloon")
            finally:
                vm.end()
                servers[0].end()

    def killed(self, name):
        print("\nserver killed while the guest runs, and started again")
        path = self.socket()
        folder = self.folder / "taken-over"
        folder.mkdir()
        words = ["--state", str(folder)] if self.takes_over else []

        def ours():
            return self.firsttouchd(self.image(name), *words, path=path)

        def example():
            return self.example(name, path=path)

        for way, start in (("firsttouchd", ours), ("example", example)):
            server = start()
            vm = Vm(self.arguments.firecracker, self.folder)
            try:
                self.load(vm, name, "Uffd", server.path)
                vm.wait("BEGIN ")
                server.end(signal.SIGKILL)
                try:
                    vm.wait("CHECKED ", 2)
                    wrong(f"{way}: the guest has all its memory without a server")
                except TimeoutError:
                    pass
                begin = time.monotonic()
                server = start()
                try:
                    when, text = vm.wait("CHECKED ", 20)
                    print(f"{way:26}goes on: all its memory after "
                          f"{(when - begin) * 1000:.0f} ms, "
                          f"{text.split()[2]} pages wrong", flush=True)
                    if not text.endswith(" 0"):
                        wrong(f"{way}: {text}")
                except TimeoutError:
                    print(f"{way:26}the guest hangs", flush=True)
                    if way != "example" and self.takes_over:
                        wrong(f"{way}: the guest hangs")
            finally:
                vm.end()
                server.end()

    def all(self):
        rounds = self.arguments.rounds
        for name, words in (("sequential", "sequential=1"), ("random", "")):
            self.make(name, words)
            self.learn(name)
        ways = ["file mapping", "example", "example, all", "firsttouchd",
                "firsttouchd, working set"]
        for name in ("sequential", "random"):
            self.compare(f"{name}: restored, until 16 MiB of {MEMORY_MIB} are "
                         "touched", name, ways, 1, rounds)
        ways.remove("example, all")
        self.compare("random: 6 at once, until the last has touched its 16 MiB",
                     "random", ways, 6, max(1, rounds // 2))
        self.balloon(self.make("balloon", f"balloon={BALLOON}", True))
        # Round 64 touches what no round before has.
        self.killed(self.make("killed", "", wait="TOUCHED 60 "))


def main():
    parser = argparse.ArgumentParser()
    for name in ("firecracker", "examples", "firsttouchd", "imagetool", "guest",
                 "folder"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    try:
        Run(arguments).all()
    finally:
        if WRONG:
            print("\nlogs:", arguments.folder)
        else:
            shutil.rmtree(arguments.folder)
    sys.exit(1 if WRONG else 0)


if __name__ == "__main__":
    main()
