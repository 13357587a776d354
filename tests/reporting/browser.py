"""A real browser, where there is one: what a page measures of itself once it is laid out."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
NEEDED = "no browser: apt-get install chromium"

# Overlaps of texts within one picture, what sticks out of the window or of its card, and colours.
_PROBE = """
<script>
addEventListener("load", () => {
  const problems = [], width = document.documentElement.clientWidth;
  const near = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                         Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  for (const svg of document.querySelectorAll("svg")) {
    const card = svg.closest("figure").getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text:not(.digit)")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((box, i) => {
      if (box.left < card.left || box.right > card.right) problems.push("outside: " + texts[i].textContent);
      for (let j = i + 1; j < boxes.length; j++)
        if (near(box, boxes[j])) problems.push(texts[i].textContent + " over " + texts[j].textContent);
    });
  }
  const sizes = [...document.querySelectorAll("svg text")].map(text => {
    const matrix = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.a, matrix.b);
  });
  const style = getComputedStyle(document.body);
  const found = {problems, width, content: document.documentElement.scrollWidth,
    smallest: Math.min(...sizes), page: style.backgroundColor, ink: style.color};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>
"""  # noqa: E501
# A window has a least width, a frame has none.
_FRAME = """<!DOCTYPE html>
<html style="color-scheme: light dark"><body><script>
addEventListener("message", event => {
  const note = document.createElement("pre");
  note.id = "found"; note.textContent = event.data;
  document.body.append(note);
});
</script><iframe src="probed.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe></body>
"""


def look(page: Path, width: int, *, dark: bool, scratch: Path) -> dict[str, Any]:
    """Lays a page out in the browser and measures it."""
    probed = scratch / "probed.html"
    probed.write_text(page.read_text("utf-8").replace("</body>", f"{_PROBE}</body>"), "utf-8")
    frame = scratch / "frame.html"
    frame.write_text(_FRAME.replace("WIDTH", str(width)), "utf-8")
    command = [
        str(FOUND), "--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={scratch / 'profile'}", "--window-size=1600,1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom",
        frame.absolute().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, done.stderr
    return json.loads(unescape(found.group(1)))
