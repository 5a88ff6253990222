"""Opens a session as a user would and prints, as JSON, what it says of itself; and what `rocline doctor` says.

Arguments: the model, then JSON of: strict, device_id, options, and `load`, a library that is loaded first.
"""

import ctypes
import json
import logging
import sys

import numpy as np

import rocline
from rocline.runtime import doctor

model, given = sys.argv[1], json.loads(sys.argv[2])
if "load" in given:
    ctypes.CDLL(given.pop("load"))
logging.getLogger("rocline").setLevel(logging.ERROR)
found = doctor.diagnose()
rocm = next(row for row in found.providers if row.name == "rocm")
said = {
    "doctor": rocm.reason,
    "fix": rocm.fix,
    "gpus": [gpu.architecture for gpu in found.gpus],
    "runs": found.runs_now,
}
try:
    with rocline.Session(model, ["rocm", "cpu"], **given) as session:
        said["active"] = session.report.active
        said["fallbacks"] = [row.why for row in session.report.fallbacks]
        x = np.ones((8, 8), np.float32)
        said["y"] = float(session.run({"x": x})["y"].sum())
except rocline.RoclineError as error:
    said["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
