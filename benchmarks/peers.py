"""The peers, apart from this project: `python -m benchmarks.peers NAME` makes .build/peers/NAME, see below for names.

`transformers serve` needs torchvision for a vision-language model's processor. Where only a CPU build of torch is at
hand, there is none of torchvision: it is installed without its dependencies, and two of its files are emptied of what
its missing compiled operators would be needed for. Nothing that is measured calls them.
"""

import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parents[1] / ".build" / "peers"
_DECODE = '''"""Pillow in place of the compiled decoders."""
import enum
import io

import numpy
import torch
from PIL import Image


class ImageReadMode(enum.Enum):
    UNCHANGED, GRAY, GRAY_ALPHA, RGB, RGB_ALPHA = range(5)


def decode_image(data, mode=ImageReadMode.RGB, **_):
    picture = Image.open(io.BytesIO(bytes(data.numpy()))).convert("RGB")
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)


def __getattr__(name):
    return decode_image
'''


def transformers() -> None:
    """transformers serve, of the version this project is built on."""
    folder = PEERS / "transformers"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "transformers[serving]==5.23.0", "accelerate", "pillow"], check=True)
    subprocess.run([*pip, "--no-deps", "torchvision"], check=True)
    find = "import importlib.util as u; print(u.find_spec('torchvision').submodule_search_locations[0])"
    where = Path(subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout.strip())
    (where / "_meta_registrations.py").write_text("")
    (where / "io" / "image.py").write_text(_DECODE)


def xgrammar() -> None:
    """The library alone: what it brings along for GPUs is left out."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS / "xgrammar")]
    subprocess.run([*pip, "xgrammar", "apache-tvm-ffi"], check=True)


def litellm() -> None:
    """LiteLLM's proxy."""
    folder = PEERS / "litellm"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "litellm[proxy]==1.106.2"], check=True)


if __name__ == "__main__":
    {"transformers": transformers, "xgrammar": xgrammar, "litellm": litellm}[sys.argv[1]]()
