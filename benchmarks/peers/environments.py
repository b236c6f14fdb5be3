"""The virtual environments of the peers: what is in them, and how they are made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".peers"
LUAS_CHECKOUT = "KRONAX_LUAS"
OURS = "kronax"

# pykronecker takes NumPy unless JAX is there, so that its two backends are two environments. luas
# is on no package index: `LUAS_CHECKOUT` names a checkout. What its examples need stays out. PyMC
# can sample by NumPyro; its Laplace approximation is in pymc-extras.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "pymc": ("pymc>=5.28", "pymc-extras>=0.10", "jax>=0.10", "numpyro>=0.22", "numpy>=2"),
    "gpytorch": ("gpytorch==1.15.*", "linear_operator==0.6.*", "torch>=2.9", "numpy>=2"),
    "botorch": ("botorch==0.18.*", "torch==2.13.*", "numpy>=2"),
    "pykronecker": ("pykronecker==0.1.3", "numpy>=2"),
    "pykronecker-jax": ("pykronecker==0.1.3", "jax>=0.10", "numpy>=2"),
    "sklearn": ("scikit-learn>=1.7", "numpy>=2"),
    "gpjax": ("gpjax>=1.0", "jax>=0.10", "numpy>=2"),
    "tinygp": ("tinygp>=0.3", "jax>=0.10", "scipy", "numpy>=2"),
    "celerite2": ("celerite2>=0.3.3", "jax>=0.10", "numpy>=2"),
    "luas": ("jax>=0.10", "scipy", "tqdm", "matplotlib", "numpy>=2"),
}
# What a result names of each environment.
PACKAGES: dict[str, tuple[str, ...]] = {
    "pymc": ("pymc", "pymc-extras", "pytensor", "numpyro", "jax"),
    "gpytorch": ("gpytorch", "linear_operator", "torch"),
    "botorch": ("botorch", "gpytorch", "linear_operator", "torch"),
    "pykronecker": ("pykronecker", "numpy"),
    "pykronecker-jax": ("pykronecker", "jax"),
    "sklearn": ("scikit-learn", "scipy"),
    "gpjax": ("gpjax", "jax"),
    "tinygp": ("tinygp", "jax"),
    "celerite2": ("celerite2", "jax"),
    "luas": ("luas", "jax"),
}


def python(name: str) -> Path:
    """The interpreter of a peer, there or not; kronax runs in ours."""
    if name == OURS:
        return Path(sys.executable)
    return FOLDER / name / "bin" / "python"


def is_installed(name: str) -> bool:
    """Whether an installation came to its end."""
    return name == OURS or _mark(name).exists()


def install(name: str) -> None:
    """Make a peer's environment anew."""
    if name not in REQUIREMENTS:
        raise ValueError(f"a peer must be one of {', '.join(REQUIREMENTS)}; got {name!r}.")
    checkout = os.environ.get(LUAS_CHECKOUT)
    if name == "luas" and not checkout:
        print(f"luas: left out. Set {LUAS_CHECKOUT} to the path of a checkout to install it.")
        return
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    _pip(name, *map(for_this_machine, REQUIREMENTS[name]))
    if name == "luas":
        _pip(name, "--no-deps", str(checkout))
    _mark(name).touch()
    print(f"{name}: installed in {folder}")


def for_this_machine(requirement: str) -> str:
    """A requirement of JAX with its libraries for NVIDIA's GPUs, where the machine has one."""
    is_jax = requirement == "jax" or requirement.startswith("jax>")
    if not is_jax or shutil.which("nvidia-smi") is None:
        return requirement
    return requirement.replace("jax", "jax[cuda12]", 1)


def _pip(name: str, *what: str) -> None:
    command = [python(name), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True)


def _mark(name: str) -> Path:
    return FOLDER / name / "complete"
