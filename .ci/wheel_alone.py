"""Uses the installed wheel in an environment that has no other package: no PyTorch, no NumPy, no pyarrow."""

import array
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

started = time.perf_counter()
import tensorcask  # noqa: E402

import_ms = (time.perf_counter() - started) * 1000
others = [name for name in ("numpy", "pyarrow", "torch") if importlib.util.find_spec(name)]
assert not others, f"this environment is not empty: {others}"

with tempfile.TemporaryDirectory() as folder:
    rows = array.array("f", range(8))
    with tensorcask.open(folder, "numbers") as store:
        assert store.format == "bytes"
        store.put(["a", "b"], memoryview(rows).cast("B").cast("f", (2, 4)))
        store["c"] = b"bytes"
        assert "a" in store and len(store) == 3
    with tensorcask.open(folder, "numbers", mode="r") as store:
        assert memoryview(store.take(["b", "a"])).tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
        rows, found = store.get(["a", "z"])
        assert (memoryview(rows).tolist(), list(found)) == ([[0, 1, 2, 3], [0, 0, 0, 0]], [True, False])
        assert store["c"] == b"bytes"
        assert store.verify()["clean"]
    try:
        tensorcask.cache(lambda rows: rows, folder, module_id="f")
    except ImportError as error:
        assert "pip install tensorcask[torch]" in str(error), error
    else:
        raise AssertionError("tensorcask.cache works without torch")

    tool = Path(sys.executable).with_name("tensorcask")
    for command in ([tool], [sys.executable, "-m", "tensorcask"]):
        said = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout
        assert said == f"tensorcask {tensorcask.__version__}\n", said
        subprocess.run([*command, "verify", f"{folder}/numbers"], check=True, stdout=subprocess.DEVNULL)

print(f"tensorcask {tensorcask.__version__} works alone; it was imported in {import_ms:.1f} ms")
