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
TESTFLAGS ?=

.PHONY: help build demo dev test test-all deps lint fmt fuzz mutants sim bench up down destroy test-compose test-faults image clean FORCE

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: bin/hallpass ## the one binary: bin/hallpass

# go build has its own idea of what is out of date.
bin/hallpass: FORCE
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/hallpass

demo: build ## the whole idea in under a minute: real mTLS, three control nodes, a proxy, things killed
	@./bin/hallpass demo

dev: build ## the demo's cluster left running, with example users
	@./bin/hallpass dev

test: ## every test, with the race detector
	$(GO) test -race -timeout 15m $(TESTFLAGS) ./...

test-all: ## what also needs other people's programs (make deps): nginx, openssl, curl
	$(GO) test -tags integration -timeout 20m $(TESTFLAGS) ./...

deps: ## install what test-all, up and bench need (Debian, as root or with sudo)
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

fuzz: ## each fuzz target for FUZZTIME (default 20s)
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

mutants: ## take the guard of each invariant, and of each trap, away: its test must fail
	@$(GO) run ./internal/mutants

# Files of simulated nodes go to memory where there is some: nothing about them is measured.
sim: ## the control plane under faults in simulated time, HOURS=50 of it, or one SEED= alone
	@dir=$$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(GO) test -c -o "$$dir/sim.test" ./internal/sim && cd internal/sim && \
	TMPDIR="$$dir" GOGC=$${GOGC:-800} HALLPASS_SIM_HOURS=$(HOURS) HALLPASS_SIM_SEED=$(SEED) \
	"$$dir/sim.test" -test.run '^TestSimulation$$' -test.timeout 60m

bench: build ## the figures of docs/benchmarks.md, one "name value unit" a line (ONLY=proxy|control|scope)
	@ONLY=$(ONLY) bench/setup
	@ONLY=$(ONLY) $(GO) run ./bench

image: build ## the container images that compose uses, made here: nothing is pulled
	@deploy/images.sh

up: image ## docker compose: three control nodes, a proxy, an upstream we did not write; prints what to type next
	@deploy/compose.sh up

down: ## stop the containers, keep the volumes
	@deploy/compose.sh down

destroy: ## remove every container, volume and network of `make up`
	@deploy/compose.sh destroy

test-compose: image ## drive the real containers: kill the leader, cut a node off, restart all, lose nothing
	$(GO) test -tags compose -count=1 -timeout 15m -v ./deploy/...

test-faults: ## kill real nodes 200 times at the worst moments, and ask each for all it promised
	$(GO) test -tags faults -count=1 -timeout 15m -v ./internal/faults

clean: ## remove what was built here (not the volumes: make destroy)
	rm -rf bin .bin .image
