# make demo   find mislabelled digits, from nothing, in a minute or two
# make photos PHOTOS=folder [RUN=folder]   rank your own images, in a folder per class, by the features of a
#             pretrained network; run it again to resume
# make test   ruff, mypy and the tests
# make bench  how fast training steps and scores are computed, in six minutes
# make experiment  which ranking finds mislabelled CIFAR-10 images best, with and without a backbone, in
#             100 minutes; run it again to resume; where there is no network, with DATA=cifar-10-python.tar.gz
# make headline [RUN=folder]  train, score and analyse all of CIFAR-10, in six hours, and draw the README's
#             figures; run it again to resume; where there is no network, with DATA=...
# make setup  only make .venv, with Python 3.10, and install what the suite needs

PYTHON = .venv/bin/python

# Where the results of `make photos` go: beside the images.
RUN = $(patsubst %/,%,$(patsubst %/,%,$(PHOTOS)))_run

.PHONY: setup demo photos test bench experiment headline

setup: .venv/installed

demo: .venv/installed
	rm -rf demo
	$(PYTHON) -u train.py --dataset digits --model resnet23 --nmaps 16 --train_epochs 12 -c cpu --run demo
	$(PYTHON) -u calculate_score.py --run demo -c cpu --explain
	$(PYTHON) mislabel_analysis.py --run demo

photos: .venv/installed
	@test -e "$(PHOTOS)" || { echo "error: expected your images at PHOTOS, found nothing at '$(PHOTOS)';" \
	  "give them: make photos PHOTOS=folder" >&2; exit 2; }
	@settings="--backbone efficientnet-lite0"; \
	if ls "$(RUN)"/checkpoint_*.json >/dev/null 2>&1; then settings=--checkpoint; fi; \
	set -x; $(PYTHON) -u train.py --dataset "$(PHOTOS)" --run "$(RUN)" $$settings || { code=$$?; set +x; \
	if [ "$$settings" = --checkpoint ]; then echo "to start over in another folder: make photos" \
	  "PHOTOS=\"$(PHOTOS)\" RUN=folder" >&2; fi; exit $$code; }
	$(PYTHON) -u calculate_score.py --run "$(RUN)" --explain
	$(PYTHON) mislabel_analysis.py --run "$(RUN)"

test: .venv/tested
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n auto --maxprocesses 8 --dist worksteal --cov --cov-fail-under=95

bench: .venv/installed
	$(PYTHON) -m tests.benchmarks.scoring

experiment: .venv/installed
	$(PYTHON) -m tests.benchmarks.experiment $(if $(DATA),--data "$(DATA)")

headline: RUN = headline
headline: .venv/installed
	@resume=; if ls "$(RUN)"/checkpoint_*.json >/dev/null 2>&1; then resume=--checkpoint; fi; \
	set -x; $(PYTHON) -u train.py --dataset cifar10 $(if $(DATA),--data "$(DATA)") --model resnet23 \
	  --train_epochs 108 --run "$(RUN)" -c cpu $$resume
	$(PYTHON) -u calculate_score.py --run "$(RUN)" -c cpu
	$(PYTHON) -u calculate_score.py --input "$(RUN)" --checkpoint "$(RUN)" --output "$(RUN)/all_layers" \
	  --layers all -c cpu
	$(PYTHON) mislabel_analysis.py --run "$(RUN)"
	$(PYTHON) -m tests.benchmarks.headline keep "$(RUN)"
	$(PYTHON) -m tests.benchmarks.headline

.venv/installed: requirements.txt | .venv/bin/python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' || \
	  { echo "error: expected Python 3.10 in .venv, found another; remove .venv and try again" >&2; exit 1; }
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/tested: requirements-test.txt requirements-mpi.txt .venv/installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

# A Python 3.10 of the machine's, else one that uv finds or fetches.
.venv/bin/python:
	@for python in python3.10 python3 python; do \
	  if $$python -c 'import sys; assert sys.version_info[:2] == (3, 10); import venv, ensurepip' 2>/dev/null; then \
	    echo "$$python -m venv .venv"; $$python -m venv .venv && exit 0; \
	  fi; \
	done; \
	rm -rf .venv .uv; \
	echo "no Python 3.10 found: trying uv"; \
	python3 -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv \
	  && .uv/bin/uv venv --quiet --seed --python 3.10 .venv 2>/dev/null && rm -rf .uv \
	|| { rm -rf .venv .uv; echo "error: expected Python 3.10, found none, and uv could not fetch it;" \
	  "install Python 3.10 with venv (Debian and Ubuntu: apt install python3.10-venv)" >&2; exit 1; }
