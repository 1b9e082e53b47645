"""An analysis of a run, and what it wrote and said."""
import csv
import json

import mislabel_analysis

# Those of a network that is trained on images.
RANKINGS = ["tracin", "tracin_weighted", "tracin_norms", "tracin_late", "loss", "margin", "error_norm",
            "self_confidence", "aum", "aum_late", "forgetting", "random"]


def analyse(run, output, *more):
    mislabel_analysis.main(["--input", str(run), "--output", str(output), *more])
    return json.loads((output / "metrics.json").read_text())


def suspects(output):
    with (output / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def words(text):
    return text.replace("%", " ").replace(",", " ").replace(";", " ").replace(":", " ").split()
