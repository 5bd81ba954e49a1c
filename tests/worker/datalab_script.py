"""Runs cleanlab's Datalab on the artifacts of a job; runs in the environment `.venv-readers`.

Prints, as JSON: its label score of every row, and how many images it takes for near-duplicates.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
from cleanlab import Datalab

folder = Path(sys.argv[1])
with (folder / "label-issues.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
labels = [row["given_label"] for row in rows]
pred_probs, embeddings = (np.load(folder / name)[: len(rows)] for name in ("pred_probs.npy", "embeddings.npy"))

lab = Datalab({"label": labels}, label_name="label", verbosity=0)
lab.find_issues(pred_probs=pred_probs, features=embeddings.astype(np.float32))
scores = lab.get_issues("label")["label_score"].tolist()
duplicates = int(lab.get_issues("near_duplicate")["is_near_duplicate_issue"].sum())
print(json.dumps({"scores": scores, "duplicates": duplicates}))
