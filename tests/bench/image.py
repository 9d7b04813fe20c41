"""cluster/Dockerfile step by step in a clean root, where there is no Docker: Debian by debootstrap, each instruction by chroot.

    python -m tests.bench.image /var/tmp/image --python ~/.pyenv/versions/3.12.1 [--compute cpu]

For root on Debian with debootstrap. The base image is Debian with a Python of its own in /usr/local: here one that is copied.
Last a small run of `tlray extract` by the image's user. The cpu image asks PyTorch's own index, beside PyPI.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
BASE = "ca-certificates,netbase,tzdata,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,zlib1g,libexpat1"
"""What the base image has for its Python."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PATH = "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
CHECK = """
wget --version | head -1 && g++ --version | head -1 && touch /opt/tlray/x 2>/dev/null && exit 1
cd && mkdir photos && python -c '
from PIL import Image
for number in range(8):
    Image.new("RGB", (64, 48), (number * 30, 0, 0)).save(f"photos/{number}.jpg")
import faiss, fastapi, onnxruntime, torch, umap
print(f"torch {torch.__version__}, faiss {faiss.__version__}")'
tlray version && tlray extract --local photos table --backbone timm:test_resnet --weights random:7
python /opt/tlray/jobs/extract.py --help | head -3
"""


class CleanRoot:
    """A folder that is a machine's whole file system for what runs in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.work, self.user = "/", "0"

    def begin(self, python: Path) -> None:
        """Debian, and a Python in /usr/local."""
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={BASE}", SUITE, self.folder], check=True)
        shutil.copy("/etc/resolv.conf", self.folder / "etc/resolv.conf")
        shutil.copy(CERTIFICATES, f"{self.folder}{CERTIFICATES}")
        place = Path(f"{self.folder}{python}")  # where it was built for
        shutil.copytree(python, place, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "test"))
        for parent in place.relative_to(self.folder).parents:
            (self.folder / parent).chmod(0o755)
        version = next(place.glob("lib/python3*"))
        (version / "site-packages").mkdir()
        self.run(f"{python}/bin/python3 -m ensurepip")
        for name in ("python", "python3"):
            (self.folder / "usr/local/bin" / name).symlink_to(f"{python}/bin/python3")
        self.environment["PATH"] = f"{python}/bin:{PATH}"

    def run(self, command: str) -> None:
        """A shell command in the root, by its user."""
        mounts = f"mount --rbind /dev {self.folder}/dev && mount -t proc proc {self.folder}/proc && exec chroot"
        user = f"--userspec={self.user}:{self.user}"
        inner = f"cd {self.work} && export HOME=$(getent passwd {self.user} | cut -d: -f6) && {command}"
        values = [f"{name}={value}" for name, value in self.environment.items()]
        line = shlex.join([user, str(self.folder), "/usr/bin/env", "-i", *values, "/bin/sh", "-ec", inner])
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", f"{mounts} {line}"], check=True)

    def copy(self, sources: list[str], target: str) -> None:
        """What COPY does, with the two rules of .dockerignore that matter here."""
        place = self.folder / self.work.lstrip("/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, place / target)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Name and rest of each instruction of a Dockerfile; comments are left out, lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name:
            yield name, rest.strip()


def main() -> None:
    """Build, and say what each step took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--compute", default="cuda")
    given = parser.parse_args()
    root = CleanRoot(given.folder, {"PATH": PATH, "SSL_CERT_FILE": CERTIFICATES, "PIP_CERT": CERTIFICATES})
    for name, rest in [*instructions((ROOT / "cluster/Dockerfile").read_text()), ("CHECK", CHECK)]:
        began = time.monotonic()
        print(f"== {name} {rest[:100]}", flush=True)
        match name:
            case "FROM":
                root.begin(given.python.resolve())
            case "RUN" | "CHECK":
                root.run(rest)
            case "WORKDIR":
                root.work = rest
                (root.folder / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "ARG":
                key, _, default = rest.partition("=")
                root.environment[key] = given.compute if key == "COMPUTE" else default
            case "ENV":
                key, _, value = rest.partition("=")
                root.environment[key] = value
            case "COPY":
                *sources, target = rest.split()
                root.copy(sources, target)
            case "USER":
                root.user = "1000" if rest == "ray" else rest
            case _:
                raise SystemExit(f"{name} is no instruction that this knows")
        print(f"== {time.monotonic() - began:.1f} s", flush=True)
    size = subprocess.run(["du", "-sm", given.folder], capture_output=True, text=True).stdout.split()[0]
    print(f"== done: {size} MB in {given.folder}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
