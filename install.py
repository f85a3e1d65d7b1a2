"""Nothing to install: the WebUI bundles all that ToDo needs. This only complains where the WebUI's torch is too old."""

from importlib.metadata import PackageNotFoundError, version

NEEDED = 2, 1  # for hooks that run when a call fails, too

try:
    found = version("torch")
except PackageNotFoundError:
    found = None

if found is not None and tuple(map(int, found.split(".")[:2])) < NEEDED:
    needed = ".".join(map(str, NEEDED))
    raise SystemExit(f"ToDo (token downsampling) needs torch {needed} or newer, but this WebUI runs torch {found}.")
