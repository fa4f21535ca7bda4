"""Python imports this at its start when its folder is on PYTHONPATH: bdkpython is then not to be had, as on aarch64."""

import sys

sys.modules["bdkpython"] = None  # type: ignore[assignment]  # an import of it raises ImportError
