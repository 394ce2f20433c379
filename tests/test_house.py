"""House rules no linter knows: what may stand in the repository and in its packaging."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MACHINE_PATH = re.compile(rb"/(?:wor" rb"k|far" rb"m)/")
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx"}
MOST_WEIGHTS = 20 * 10**6
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def tracked() -> list[Path]:
    """The files git holds, links left out."""
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name for name in out.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def unsafe_loading(source: str) -> list[str]:
    """Where a source could run code that comes with data: unpickling, or a model's own Python files."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.Call):
            flags = {flag.arg: flag.value for flag in node.keywords}
            trust = flags.get("trust_remote_code", ast.Constant(value=False))
            weights = flags.get("weights_only")
            if not (isinstance(trust, ast.Constant) and trust.value is False):
                found.append("trust_remote_code")
            if ast.unparse(node.func) == "torch.load" and not (isinstance(weights, ast.Constant) and weights.value):
                found.append("torch.load")
            if any(isinstance(value, ast.Constant) and value.value is True for value in (flags.get("allow_pickle"),)):
                found.append("allow_pickle")
    return found


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+) \\$", text)}


def test_no_file_names_a_place_on_one_machine() -> None:
    found = [str(path.relative_to(ROOT)) for path in tracked() if MACHINE_PATH.search(path.read_bytes())]
    assert found == []


def test_nothing_loads_code_with_data() -> None:
    sources = [path for folder in ("qwen3vl_compat", "policies", "adapters") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path): unsafe_loading(path.read_text(encoding="utf-8")) for path in sources}
    assert {path: why for path, why in found.items() if why} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=asked)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_planted_unsafe_loading_is_caught(planted: str) -> None:
    assert unsafe_loading(planted)


def test_safe_loading_passes() -> None:
    assert unsafe_loading("torch.load(path, weights_only=True)\nload(path, trust_remote_code=False)") == []


def test_the_weights_stay_small() -> None:
    weights = [path for path in tracked() if path.suffix in WEIGHTS]
    assert sum(path.stat().st_size for path in weights) <= MOST_WEIGHTS
    assert {path.suffix for path in weights} <= {".safetensors"}


def test_the_make_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```.*?```|`[^`\n]+`", readme, re.DOTALL)
    named = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code)))
    rules = re.findall(r"(?m)^([a-z][a-z ]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert {"run", "test"} <= named
    assert named <= {target for rule in rules for target in rule.split()}


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["local"], *extras["langchain"]]
    for lock, names in (("requirements.lock", asked), ("requirements-dev.lock", [*asked, *extras["dev"]])):
        held = pins(lock)
        needs = [need for need in map(Requirement, names) if need.name != "torch"]
        assert [str(need) for need in needs if held.get(canonicalize_name(need.name), "") not in need.specifier] == []
    assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()


def test_torch_is_pinned_exactly_and_kept_out_of_the_locks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "torch==2.13.0" in project["optional-dependencies"]["local"]
    assert not {"torch", "torchvision"} & pins("requirements-dev.lock").keys()
