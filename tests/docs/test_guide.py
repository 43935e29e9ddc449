"""The guide's blocks run, in order, as they stand."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        # Lines of a traceback are those of the page.
        source = "\n" * text[:block.start(1)].count("\n") + block[1]
        exec(compile(source, str(GUIDE), "exec"), names)
    assert names["layer"].stats["cycles"] > 0
