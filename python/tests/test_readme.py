"""The programs in README.md run, and print what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.S)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_programs_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "readme.py"
    names: dict[str, object] = {"__name__": "readme", "__file__": str(program)}
    blocks = BLOCK.findall(README.read_text())
    assert len(blocks) >= 6
    # Classes and functions are cached by their source, which has to be in a file.
    program.write_text("\n".join(code for code, _ in blocks))
    for code, expected in blocks:
        printed = io.StringIO()
        before = "\n" * program.read_text().partition(code)[0].count("\n")
        with contextlib.redirect_stdout(printed):
            exec(compile(before + code, str(program), "exec"), names)
        assert printed.getvalue().strip() == expected.strip(), code
