# SPDX-License-Identifier: Apache-2.0
# Short names for script/*, which also work without make.
# Options go in ARGS: make demo ARGS='--count 1000'

.PHONY: help demo install uninstall test faults soak lint bench bench-lab fuzz payload wheel lock audit sbom clean lab-amd lab-intel lab-kernel lab-passthrough lab-truth lab-clean test-guest test-lab test-lab-amd test-lab-intel test-lab-nested test-lab-passthrough test-lab-hotplug test-lab-truth test-lab-bench test-lab-burn test-lab-ipiv

help: ## list the targets
	@sed -n 's/^\([a-z -]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: ## set up, then measure IPIs in the built-in guest (as root)
	@script/demo $(ARGS)

PREFIX ?= /usr/local
install: ## set up, then install for everyone: PREFIX/bin/ipitrace and PREFIX/lib/ipitrace (as root)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' script/install

uninstall: ## remove what install wrote (as root)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' script/install --remove

test: ## set up, then run all tests (as root, or the live ones are skipped)
	@script/test $(ARGS)

faults: ## cause real faults: kill -9 a hundred times, full disk, too little memory (as root)
	@script/setup dev
	IPITRACE_KILLS=100 .venv/bin/python -m pytest tests/faults $(ARGS)

soak: ## watch and measure for an hour; resource usage must not grow (as root)
	@script/setup dev
	.venv/bin/python tests/soak $(ARGS)

lint: ## set up, then run every static check
	@script/lint

bench: ## set up, then measure the cost of watching (as root)
	@script/setup dev
	.venv/bin/python -m bench $(ARGS)

bench-lab: ## count the instructions that watching adds to an IPI, in the emulated Intel host (as root)
	@script/setup lab
	@.venv/bin/python -m lab.bench $(ARGS)

fuzz: ## set up, then fuzz the parsers of foreign data: 1 M inputs or 10 minutes each
	@script/setup dev
	@.venv/bin/python -m tests.fuzz $(ARGS)

payload: ## build the micro-guest's payload
	$(MAKE) --no-print-directory -C guest-tools/microguest

wheel: ## build sdist and wheel into dist/
	@script/setup dev
	.venv/bin/python -m build --no-isolation

lock: ## lock the dependencies of pyproject.toml (needs a network; ARGS=--upgrade for new versions)
	@script/lock $(ARGS)

audit: ## check on PyPI whether the locked packages have known vulnerabilities (needs a network)
	@script/setup supply
	.venv/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/supply.txt

sbom: ## write the components of the running program to dist/ipitrace.cdx.json (CycloneDX)
	@script/setup supply
	@mkdir -p dist
	.venv/bin/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml --mc-type application --output-reproducible --validate --output-file dist/ipitrace.cdx.json

clean: ## remove the files of builds and checks; keep .venv and recordings
	$(MAKE) --no-print-directory -C guest-tools/microguest clean
	$(MAKE) --no-print-directory -C guest-tools/ipitrace_storm clean
	rm -rf build dist __pycache__ .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find ipitrace tests -name __pycache__ -prune -exec rm -r {} +

lab-amd lab-intel: ## measure on an emulated host (as root; lab/README.md)
	@script/setup lab
	@.venv/bin/python -m lab.$(@:lab-%=%) $(ARGS)

lab-kernel: ## build the lab's kernel, with the Passthrough IPI series (as root)
	@script/setup dev
	@.venv/bin/python -m lab.kernel $(ARGS)

lab-passthrough: ## compare Passthrough IPI off and on, on the emulated Intel host (as root)
	@script/setup dev
	@.venv/bin/python -m lab.passthrough $(ARGS)

lab-truth: ## compare an IPI's stages with the true ones, on the emulated Intel host (as root)
	@script/setup lab
	@.venv/bin/python -m lab.truth --traced --parameter kvm.halt_poll_ns=0 $(ARGS)

lab-clean: ## remove everything that the lab has built
	@script/setup dev
	@.venv/bin/python -m lab.common.clean

# All guests: GUESTS=bullseye,bookworm,trixie,trixie-backports
GUESTS ?= bookworm,trixie
test-guest: ## build ipitrace_storm for Debian's kernels, run its tests in a Linux guest (as root)
	@script/setup lab
	@.venv/bin/python -m lab.guest
	@IPITRACE_GUEST=$(GUESTS) .venv/bin/python -m pytest -m guest tests/guest $(ARGS)

test-lab: test-lab-amd test-lab-intel test-lab-nested test-lab-passthrough test-lab-hotplug test-lab-truth test-lab-bench test-lab-burn test-lab-ipiv ## run the tests on all emulated hosts (as root)

test-lab-amd test-lab-intel test-lab-nested test-lab-passthrough test-lab-hotplug test-lab-truth test-lab-bench test-lab-burn test-lab-ipiv: ## run the tests on one of them
	@script/setup lab
	@IPITRACE_LAB=$(@:test-lab-%=%) .venv/bin/python -m pytest -m lab tests/lab $(ARGS)
