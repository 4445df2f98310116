#!/usr/bin/env python3
"""Says how a `bazel test` ended, from the events that Bazel wrote about it.

  summary.py <file of --build_event_json_file> <Bazel's exit code>

What is counted is Bazel's test targets. One that did not build has failed, and
so has a library that did not build: it is named, for no test may have needed
it. A test all of whose cases skipped themselves (a kernel without the feature)
is skipped; every skipped case is listed with its reason. The last line is
'N passed, N failed'; the exit code is 0 only if Bazel's is and nothing failed.
"""

import json
import re
import sys
import urllib.parse
import xml.etree.ElementTree

PASSED = ("PASSED", "FLAKY")

# A package that does not load is in no event but in what Bazel prints.
NOT_LOADED = re.compile(
    r"(?:ERROR|WARNING).*?((?:error loading package|no such package|package contains errors).*)"
)
COLORS = re.compile("\x1b\\[[0-9;]*[A-Za-z]")


def skipped_cases(path):
    """Returns (cases run, [(name, reason) of skipped ones]) of a test.xml."""
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except (OSError, xml.etree.ElementTree.ParseError):
        return 1, []  # Not from GoogleTest; the test as such has run.
    run, skipped = 0, []
    for case in root.iter("testcase"):
        reason = case.find("skipped")
        if reason is None and case.get("result") != "skipped":
            run += 1
            continue
        text = "" if reason is None else reason.get("message") or reason.text
        name = "%s.%s" % (case.get("classname"), case.get("name"))
        skipped.append((name, " ".join((text or "no reason given").split())))
    return run, skipped


class Outcome:
    """What became of each target, as far as the events tell."""

    def __init__(self):
        self.tests = {}  # label: status, for every test that Bazel knows of
        self.unbuilt = set()  # labels of targets that did not build
        self.cases = {}  # label: [cases run, skipped cases]
        self.errors = []  # what stopped Bazel before there was a target

    def read(self, path):
        with open(path, encoding="utf-8") as events:
            for line in events:
                if line.strip():
                    self.add(json.loads(line))

    def add(self, event):
        kind = event["id"]
        if "targetConfigured" in kind and "configured" in event:
            if "testSize" in event["configured"]:
                label = kind["targetConfigured"]["label"]
                self.tests.setdefault(label, "NO_STATUS")
        elif "targetCompleted" in kind:
            if not event.get("completed", {}).get("success", False):
                self.unbuilt.add(kind["targetCompleted"]["label"])
        elif "testResult" in kind:
            label = kind["testResult"]["label"]
            counts = self.cases.setdefault(label, [0, []])
            for output in event["testResult"].get("testActionOutput", []):
                if output["name"] == "test.xml" and "uri" in output:
                    uri = urllib.parse.urlparse(output["uri"])
                    run, skipped = skipped_cases(urllib.parse.unquote(uri.path))
                    counts[0] += run
                    counts[1] += skipped
        elif "testSummary" in kind:
            label = kind["testSummary"]["label"]
            self.tests[label] = event["testSummary"]["overallStatus"]
        elif "progress" in kind:
            text = event.get("progress", {}).get("stderr", "")
            for line in COLORS.sub("", text).splitlines():
                match = NOT_LOADED.match(line)
                if match:
                    self.errors.append(match.group(1))
        elif "aborted" in event and "description" in event["aborted"]:
            # A test that did not build is counted as that.
            if "targetCompleted" not in kind and "testSummary" not in kind:
                self.errors.append(event["aborted"]["description"])


def main():
    outcome = Outcome()
    bazel_exit = int(sys.argv[2])
    try:
        outcome.read(sys.argv[1])
    except (OSError, ValueError) as error:
        outcome.errors.append("cannot read Bazel's events: %s" % error)

    passed, failed, skipped = 0, [], 0
    for label, status in sorted(outcome.tests.items()):
        run, skipped_here = outcome.cases.get(label, [1, []])
        for name, reason in skipped_here:
            print("skipped: %s %s: %s" % (label, name, reason))
        if label in outcome.unbuilt:
            failed.append((label, "FAILED TO BUILD"))
        elif status not in PASSED:
            failed.append((label, status))
        elif run == 0 and skipped_here:
            skipped += 1
        else:
            passed += 1
    for label in sorted(outcome.unbuilt - set(outcome.tests)):
        failed.append((label, "FAILED TO BUILD"))
    for error in sorted(set(outcome.errors)):
        failed.append(("bazel", error))
    if not failed and (bazel_exit != 0 or not outcome.tests):
        failed.append(("bazel", "exit code %d; it says why above" % bazel_exit))

    for label, status in failed:
        print("failed: %s: %s" % (label, status))
    line = "%d passed, %d failed" % (passed, len(failed))
    print(line + (", %d skipped" % skipped if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
