#!/usr/bin/env python3
"""The page that `pooldump map --html` writes, in a real browser.

  browser_test.py POOLDUMP POOL_MAKER

Points at places of the page as it is laid out, and reads what it tells. Skipped
where there is no Chromium (Debian: chromium): it is large, and only for this.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

POOLDUMP, POOL_MAKER = map(os.path.abspath, sys.argv[1:3])
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
TIME_LIMIT = 120  # Seconds; only against a browser that hangs.
# Without userfaultfd, so that it runs everywhere.
RECIPE = """
pools {
  config { name: "tenants" instances: 1 max_memory_bytes: "1MiB"
           guard_after_bytes: "64KiB" supply: "mappings-drop" }
  tenants { size_bytes: "512KiB" write_pages: 3 }
}
"""
# Moves the pointer to the middle of the cells of pages 0 and 5 of the drawing that
# is shown, and to a corner, and leaves in the title which drawing that is, how much
# of the page lies beside the window, and what is told each time.
PROBE = """
<script>
function at(x, y) {
  document.elementFromPoint(x, y).dispatchEvent(new PointerEvent(
      "pointermove", {bubbles: true, clientX: x, clientY: y}));
  return tip.hidden ? "nothing" : tip.textContent + " at " + (tip.offsetWidth > 0);
}
const drawing = Array.from(document.querySelectorAll("svg")).find(function (svg) {
  return getComputedStyle(svg).display !== "none";
});
const told = [0, 5].map(function (page) {
  const box = drawing.querySelectorAll("[data-text]")[page].getBoundingClientRect();
  return at(box.left + box.width / 2, box.top + box.height / 2);
});
document.title = [drawing.getAttribute("class"),
                  document.documentElement.scrollWidth - innerWidth].concat(
    told, [at(1, 1)]).join("|");
</script>
"""


@unittest.skipUnless(BROWSER, "there is no chromium here")
class BrowserTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        maker = subprocess.Popen([POOL_MAKER, RECIPE], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
        pid = maker.stdout.readline().split()[1]
        subprocess.run([POOLDUMP, "map", pid, "0", "--html=map.html"], cwd=self.folder, check=True)
        maker.communicate(timeout=TIME_LIMIT)
        self.page = (self.folder / "map.html").read_text()

    def probe(self, width):
        """What PROBE leaves in a window of this width."""
        probed = self.folder / "probed.html"
        probed.write_text(self.page.replace("</body>", PROBE + "</body>"))
        dom = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
             f"--window-size={width},800", f"--user-data-dir={self.folder}/profile",
             probed.as_uri()],
            env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}, timeout=TIME_LIMIT,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
        drawing, beside, *told = re.search("<title>(.*?)</title>", dom, re.S)[1].split("|")
        return drawing, int(beside), told

    def check_told(self, told):
        first, sixth, corner = told
        self.assertRegex(first, r"page 0, offset 0x0-0xfff\n.*private\n.*own at true")
        self.assertRegex(sixth, r"page 5, offset 0x5000-0x5fff\n.*missing\n.* at true")
        self.assertEqual(corner, "nothing")

    def test_needs_no_other_file(self):
        self.assertNotRegex(self.page, r"(src|href)=|@import|url\(")

    def test_pointing_at_a_page_tells_of_it(self):
        drawing, beside, told = self.probe(1400)
        self.assertEqual(drawing, "wide")
        self.assertLessEqual(beside, 0)
        self.check_told(told)

    def test_fits_a_narrow_window(self):
        drawing, beside, told = self.probe(400)
        self.assertEqual(drawing, "narrow")
        self.assertLessEqual(beside, 0)
        self.check_told(told)


unittest.main(argv=sys.argv[:1])
