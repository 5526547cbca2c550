"""Prints what an environment is made of: the releases that its tests are about."""

import importlib.metadata
import platform

NAMES = ("mlflow", "mlflow-skinny", "torch", "torch-tensorrt-rtx", "tensorrt-rtx", "numpy", "pandas", "pydantic")


def main() -> None:
    found = [f"Python {platform.python_version()}"]
    for name in NAMES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print(", ".join(found), flush=True)


if __name__ == "__main__":
    main()
