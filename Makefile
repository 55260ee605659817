# Hallpass. `make help` lists what there is.
#
# Needs Go 1.26, make and a C compiler (for the race detector). What else a target needs,
# `make deps` installs.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 20s
ONLY    ?=
HOURS   ?= $(if $(SEED),,50)
SEED    ?=
SCALE   ?=
TESTFLAGS ?=

.PHONY: help build build-kms test-kms demo dev test test-all test-programs deps lint fmt fuzz fuzz-planted soak mutants sim bench up down destroy test-compose test-faults image clean FORCE

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: bin/hallpass ## the one binary: bin/hallpass

# go build has its own idea of what is out of date.
bin/hallpass: FORCE
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/hallpass

build-kms: bin/hallpass-kms ## the same with KMS, for the roots: bin/hallpass-kms, with cgo

bin/hallpass-kms: FORCE
	@mkdir -p bin
	CGO_ENABLED=1 $(GO) build -tags kms -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/hallpass

demo: build ## the whole idea in under a minute: real mTLS, three control nodes, a proxy, things killed
	@./bin/hallpass demo

dev: build ## the demo's cluster left running, with example users
	@./bin/hallpass dev

test: ## every test, with the race detector
	$(GO) test -race -timeout 15m $(TESTFLAGS) ./...

test-all: test test-programs ## both of these

# The tests of the files that only this tag has; all others are `make test`'s.
test-programs: ## what needs other people's programs (make deps): nginx, openssl, curl, Chromium; and every command of the docs
	@files=$$(grep -rl --include='*_test.go' '^//go:build integration' .); \
	tests=$$(sed -nE 's/^func (Test[A-Za-z0-9_]+)\(.*/\1/p' $$files | paste -sd'|'); \
	$(GO) test -tags integration -count=1 -timeout 20m $(TESTFLAGS) -run "^($$tests)$$" $$(dirname $$files | sort -u)

test-kms: ## roots in a token of SoftHSM: made, signed with, renewed by the signer, gone, wrong (make deps)
	CGO_ENABLED=1 $(GO) test -tags kms -count=1 -timeout 15m -v ./ca/kms
	CGO_ENABLED=1 $(GO) test -tags kms -count=1 -timeout 15m -v -run KMS ./cmd/hallpass

deps: ## install what test-all, test-kms, up and bench need (Debian, as root or with sudo)
	@scripts/deps.sh

lint: .bin/golangci-lint ## gofumpt, golangci-lint, go vet, go fix, tidy modules: all clean
	@scripts/lint.sh

fmt: .bin/golangci-lint ## gofumpt over every file
	@git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 .bin/gofumpt -w

# Both tools, at the versions that tools/go.sum pins.
.bin/golangci-lint: tools/go.mod tools/go.sum
	@mkdir -p .bin
	$(GO) -C tools build -o $(CURDIR)/.bin/ tool
	@touch .bin/golangci-lint .bin/gofumpt

fuzz: ## each fuzz target for FUZZTIME (default 20s), or ONLY=pattern
	@FUZZTIME='$(FUZZTIME)' ONLY='$(ONLY)' scripts/fuzz.sh

fuzz-planted: ## plant a bug for each fuzz target, which must find it within a minute (ONLY=FuzzX one of them)
	@$(GO) run ./internal/mutants -fuzz -target '$(ONLY)'

IDLE       ?= 10000
SEQUENTIAL ?= 1000000
soak: ## IDLE=10000 connections that wait, SEQUENTIAL=1000000 that come and go: what the proxy holds stays flat
	SOAK_IDLE=$(IDLE) SOAK_SEQUENTIAL=$(SEQUENTIAL) $(GO) test -tags soak -count=1 -timeout 4h -v -run '^TestSoak$$' ./proxy

mutants: ## take the guard of each invariant, and of each trap, away: its test must fail (ONLY=pattern of names)
	@$(GO) run ./internal/mutants -name '$(ONLY)'

# Files of simulated nodes go to memory where there is some: nothing about them is measured.
sim: ## the control plane under faults in simulated time, HOURS=50 of it, or one SEED= alone
	@dir=$$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(GO) test -c -o "$$dir/sim.test" ./internal/sim && cd internal/sim && \
	TMPDIR="$$dir" GOGC=$${GOGC:-800} HALLPASS_SIM_HOURS=$(HOURS) HALLPASS_SIM_SEED=$(SEED) \
	"$$dir/sim.test" -test.run '^TestSimulation$$' -test.timeout 60m

bench: build ## the figures of docs/benchmarks.md, one "name value unit" a line (ONLY=proxy|control|scope|size|console SCALE=1)
	@ONLY=$(ONLY) bench/setup
	@ONLY=$(ONLY) $(GO) run ./bench $(if $(SCALE),-scale $(SCALE))

image: build ## the container images that compose uses, made here: nothing is pulled
	@deploy/images.sh

up: image ## docker compose: three control nodes, a proxy, an upstream we did not write; prints what to type next
	@deploy/compose.sh up

down: ## stop the containers, keep the volumes
	@deploy/compose.sh down

destroy: ## remove every container, volume and network of `make up`
	@deploy/compose.sh destroy

test-compose: image ## drive the real containers: kill, cut off, restart, replace, restore, recover; lose nothing
	$(GO) test -tags compose -count=1 -timeout 15m -v ./deploy/...

test-faults: ## kill real nodes 200 times at the worst moments, fill their disks, and ask each for all it promised
	$(GO) test -tags faults -count=1 -timeout 20m -v ./internal/faults

clean: ## remove what was built here (not the volumes: make destroy)
	rm -rf bin .bin .image
