"""Nothing to install: the WebUI bundles all that ToDo needs. This only complains where the WebUI's torch is too old."""

from importlib.metadata import PackageNotFoundError, version

NEEDED = 2

try:
    found = version("torch")
except PackageNotFoundError:
    found = None

if found is not None and int(found.partition(".")[0]) < NEEDED:
    raise SystemExit(f"ToDo (token downsampling) needs torch {NEEDED}.0 or newer, but this WebUI runs torch {found}.")
