"""One file per kind of pipeline; `driver.py` finds them here. Each has a `DRIVER`."""
