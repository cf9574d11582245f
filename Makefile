# `make lint` and `make test` are what CI runs (.ci/run). Everything works from a fresh clone: `test` installs the servers
# it needs where it may (Debian or Ubuntu, as root) and starts them itself on private loopback ports.
# One test: target/debug/with-services cargo test -p jobgate-tests --test services a_vhost

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO_TARGET_DIR ?= target
WITH_SERVICES := $(CARGO_TARGET_DIR)/debug/with-services
# Tests wait for disks and brokers more than they compute, so there are some more of them than cores.
export RUST_TEST_THREADS ?= $(shell echo $$(($$(nproc) + 2)))

.PHONY: test lint audit bench test-alerts model crash-matrix torture simulate contract drill mutants fuzz test-slurm siege test-gridengine clean-services

# Half of the programs run beside the other half, for they wait more than they compute; what the first half says comes after.
# What lies in a module `alone` leaves nothing of the machine to others, and has it to itself. There are no documentation tests.
FIRST_HALF = $(CARGO_TARGET_DIR)/tests-a-to-d.log
test:
	deploy/install-services
	cargo build --workspace --bin jobgate --bin with-services --tests --locked
	# Signals are ignored as in whatever a shell starts in the background; a test sees that no job inherits it. SIGINT is
	# given back to the half that is: tests send it.
	$(WITH_SERVICES) sh -c 'trap "" QUIT USR1; run="cargo test --workspace --locked --no-fail-fast"; failed=0; \
	    env --default-signal=INT $$run --test "[a-d]*" -- --skip alone:: >$(FIRST_HALF) 2>&1 & first=$$!; \
	    $$run --lib --bin jobgate --test "[e-z]*" -- --skip alone:: || failed=$$?; \
	    wait $$first || failed=$$?; cat $(FIRST_HALF); \
	    $$run --lib --bin jobgate --test "*" -- alone:: || failed=$$?; exit $$failed'

lint:
	cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

# Licences, banned crates and sources need the lock file only; known vulnerabilities need their database.
audit:
	command -v cargo-deny >/dev/null || cargo install cargo-deny --locked
	cargo deny --locked check bans licenses sources
	@if timeout 120 cargo deny --locked fetch db; \
	then cargo deny --locked check --disable-fetch advisories; \
	else echo "advisories NOT checked: their database cannot be reached from here" >&2; fi

# Both forms; BENCH holds flags of `jobgate bench`, such as BENCH="--output json".
bench:
	deploy/install-services
	cargo build --release --locked -p jobgate -p jobgate-tests
	$(CARGO_TARGET_DIR)/release/jobgate bench $(BENCH)
	$(CARGO_TARGET_DIR)/release/with-services sh -c 'JOBGATE_DATABASE_URL=$$JOBGATE_TEST_DATABASE_URL \
	    JOBGATE_BROKER_URL=$$JOBGATE_TEST_AMQP_URL $(CARGO_TARGET_DIR)/release/jobgate bench $(BENCH)'

# Each alert on a story of its own: what it fires on, and what it is silent on.
test-alerts:
	deploy/install-services alerts
	promtool check rules deploy/prometheus-alerts.yml
	promtool test rules tests/alerts/alerts.yml

# Every interleaving of the submission protocol within some faults; MODEL holds flags for a search of one's own, such as
# MODEL="--kind two-phase --crashes 2 --cancels 1".
model:
	cargo build --workspace --all-targets --locked
	$(CARGO_TARGET_DIR)/debug/jobgate-model $(MODEL)

# Processes aborted at every point × its first and n-th passing × both forms × every kind of manager; `test` runs a slice. POINT
# holds the name of a point, for its cells alone, such as POINT="alone.committed".
crash-matrix:
	deploy/install-services
	cargo build --workspace --all-targets --locked
	JOBGATE_TEST_CRASH_MATRIX=$(or $(POINT),whole) $(WITH_SERVICES) cargo test --workspace --locked --test crash_matrix -- --nocapture

# Faults that follow from a seed, real processes, a verdict; TORTURE holds flags, such as TORTURE="--seconds 600 --seed 7".
torture:
	deploy/install-services
	cargo build --workspace --all-targets --locked
	$(CARGO_TARGET_DIR)/debug/torture $(TORTURE)

# One outage at the size production meets it, such as DRILL="outage --away 60"; DRILL="help" names them.
drill:
	deploy/install-services
	cargo build --release --workspace --bin jobgate --bin drill --locked
	$(CARGO_TARGET_DIR)/release/drill $(DRILL)

# More seeds than `test` runs, as SEEDS="1000000" [FROM="0"], or one with all that happens in it, as SEED="7".
simulate:
	SIMULATE_SEED="$(SEED)" SIMULATE_SEEDS="$(SEEDS)" SIMULATE_FROM="$(FROM)" \
	    cargo test --workspace --locked --test simulation -- --nocapture --exact every_job_runs_once_and_settles_whatever_fails

# Both forms against what /openapi.json says of them; CONTRACT holds flags of `schemathesis run`, such as
# CONTRACT="--max-examples 500 --seed 7".
contract:
	deploy/install-services contract
	cargo build --workspace --all-targets --locked
	tests/contract/install $(CARGO_TARGET_DIR)/contract
	$(WITH_SERVICES) $(CARGO_TARGET_DIR)/debug/contract $(CARGO_TARGET_DIR)/contract/bin/schemathesis $(CONTRACT)

# Known bugs, each put into a copy of the tree: what must notice it does. One build for each; MUTANTS holds names of some, such as
# MUTANTS="ack-before-claim".
mutants:
	tests/mutants/run $(MUTANTS)

# Every target for SECONDS each; what is found lies in tests/fuzz/artifacts.
fuzz:
	tests/fuzz/run $(or $(SECONDS),60)

# The Slurm engine against Slurms of its own, as root: this machine's, and 24.11 out of a Debian 13 in $(SLURM_24_11), which the
# first run installs there; SLURM holds names of cases, such as SLURM="slurm::held".
SLURM_24_11 = $(CARGO_TARGET_DIR)/slurm-24.11
test-slurm:
	deploy/install-services slurm
	tests/slurm-24.11/install $(SLURM_24_11)
	cargo build --workspace --all-targets --locked
	JOBGATE_TEST_SLURM_24_11=$(abspath $(SLURM_24_11)) $(CARGO_TARGET_DIR)/debug/slurm --test-threads 8 $(SLURM)

# The whole gateway on a Slurm that is broken again and again, as root; SIEGE holds how many jobs. `slurm calls` beside it counts
# the calls a queue of 500 costs.
siege:
	deploy/install-services slurm
	cargo build --workspace --all-targets --locked
	$(CARGO_TARGET_DIR)/debug/slurm siege $(SIEGE)

# The command engine's preset against the real Grid Engine, as root; GRIDENGINE holds flags of a test program, such as a name.
test-gridengine:
	deploy/install-services gridengine
	cargo build --workspace --all-targets --locked
	$(CARGO_TARGET_DIR)/debug/gridengine $(GRIDENGINE)

# Runs end their servers themselves; this removes what a run that was killed with -9 left in the temporary directory.
clean-services:
	@shopt -s nullglob; for folder in "$${TMPDIR:-/tmp}"/jobgate-test-*/; do \
	    folder=$${folder%/}; owner=$$(cat "$$folder/owner" 2>/dev/null || echo none); \
	    [ ! -d "/proc/$$owner" ] || { echo "$$folder: its run (pid $$owner) goes on"; continue; }; \
	    for process in /proc/[0-9]*; do \
	        case $$(readlink "$$process/cwd" || true) in *"$$folder"|*"$$folder"/*) kill -9 "$${process#/proc/}" || true ;; esac; \
	    done; \
	    rm -rf "$$folder"; echo "$$folder: removed"; \
	done
