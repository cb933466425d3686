# What a developer runs. Every target installs what it needs, and says so before it does.

SHELL := /bin/bash
PG_MAJOR ?= 18
ARCH ?= arm64

.PHONY: help setup setup-tests build demo up test lint unit template-test bench layer deny clean

help:
	@echo "make demo           export a sample database, restore it with pg_restore, compare; undo a mistake"
	@echo "make up             leave the local stack running (ARGS='--database-url postgres://…')"
	@echo "make test           format, lints, unit, integration and template tests"
	@echo "make bench          side by side with pg_dump and pg_restore (ARGS='restore --scale 1')"
	@echo "make layer          the pg-client layer (PG_MAJOR=$(PG_MAJOR) ARCH=$(ARCH))"

setup:
	@scripts/setup.sh

setup-tests: setup
	@scripts/setup-tests.sh

build: setup
	@echo "building the functions and the local stack (the first time takes some minutes)"
	@cargo build --workspace --bins

demo: build
	@cargo run --quiet -p local -- demo

up: build
	@cargo run --quiet -p local -- up $(ARGS)

test: setup-tests lint unit template-test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# The functions' binaries are what the integration tests invoke. Those wait for servers and back-offs half of their time.
unit: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
unit:
	cargo build --workspace --bins
	cargo test --workspace

template-test: setup-tests
	.venv/bin/python tests/templates/check.py

bench: setup-tests
	cargo build --release -p scheduled-export -p restore-trigger -p local -p holdfast-benches
	target/release/holdfast-benches $(or $(ARGS),export)

layer:
	infra/pg-client-layer/build.sh --major $(PG_MAJOR) --arch $(ARCH)

deny:
	cargo deny check

clean:
	cargo clean
	rm -rf .tools .venv .local
