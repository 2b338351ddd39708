"""The peers' own environment: made once in benchmarks/.peers, versions as in constraints.txt."""

import json
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".peers"
PACKAGES = ["torch", "transformers", "sentence-transformers", "accelerate", "datasets", "FlagEmbedding", "faiss-cpu"]
VERSIONS = """
import importlib.metadata as m, json, sys
names = "torch transformers tokenizers sentence-transformers FlagEmbedding accelerate datasets numpy deepspeed".lower().split()
found = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
print(json.dumps({"python": sys.version.split()[0], **{n: found[n] for n in names if n in found}}))
"""


def python() -> str:
    """The interpreter of the peers' environment, which is made where it does not stand."""
    binary, constraints, stamp = FOLDER / "bin" / "python", HERE / "constraints.txt", FOLDER / ".installed"
    if not stamp.exists() or stamp.read_text("utf8") != constraints.read_text("utf8"):
        print(f"installing the peers in {FOLDER} (some minutes)", file=sys.stderr, flush=True)
        venv.create(FOLDER, with_pip=True)
        pip = [str(binary), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), *PACKAGES], check=True)
        stamp.write_text(constraints.read_text("utf8"), "utf8")
    return str(binary)


def versions(interpreter: str) -> dict[str, str]:
    """Of what decides the figures, as far as it is installed there."""
    return json.loads(subprocess.run([interpreter, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout)
