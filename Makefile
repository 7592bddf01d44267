# The commands of this tree. Each first lets scripts/setup look whether the machine has what a build needs;
# after that plain cargo does the same: `cargo run --release`, `cargo test --workspace`.
.DEFAULT_GOAL := help
.PHONY: help run build test lint fmt e2e e2e-kill e2e-abuse e2e-chaos e2e-mutants e2e-s3 e2e-sim bench setup
export PATH := $(PATH):$(HOME)/.cargo/bin

help:   ## this list
	@sed -n 's/^\([a-z0-9-]*\): *[a-z]* *## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

run: setup  ## build for speed and start a node on its built-in defaults, data in ./data (ARGS="--data-dir /srv/x")
	cargo run --release -- $(ARGS)

build: setup  ## build the node for speed
	cargo build --release

test: setup  ## every test of the workspace
	cargo test --workspace $(ARGS)

lint: setup  ## formatting and every lint, as the gate asks
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt: setup  ## format the code
	cargo fmt --all

e2e: setup  ## against a real Prometheus: what it stored and what Engram answers, answer by answer
	scripts/e2e

e2e-kill: setup  ## kill -9 in the middle of writes, twenty times: nothing acknowledged is lost (SEED=n replays)
	scripts/e2e-kill

e2e-sim: setup  ## simulated clusters, one schedule a seed (SEEDS=n; SEED=n replays)
	scripts/e2e-sim

e2e-abuse: setup  ## hostile and clumsy clients, a full disk, bad options: the node answers precisely and stays well
	scripts/e2e-abuse

e2e-chaos: setup  ## a cluster under load, killed, paused and cut off: what was promised held (SCENARIOS=all for all, SEED=n replays)
	scripts/e2e-chaos

e2e-mutants: setup  ## nodes broken on purpose, each caught by the checker that must (ONLY=majority-of-one for some, SEED=n)
	scripts/e2e-mutants

e2e-s3: setup  ## the object store over the wire, against a server of S3's protocol that is started for it
	scripts/e2e-s3

bench: setup  ## the benchmarks
	cargo bench --workspace

setup:  ## look for what is missing on this machine and install it
	@scripts/setup
