# Everything a person or the CI does with this repository. `make` lists it.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
V := github.com/prometheus/common/version
LDFLAGS := -s -w -X $(V).Version=$(VERSION) -X $(V).Revision=$(REVISION)

# Where the real servers that tests need are kept. internal/servers/install.sh fills it.
export LAG_MONITOR_TEST_SERVERS ?= $(HOME)/.cache/lag-monitor/servers

# The race detector needs a C compiler.
RACE ?= -race
FUZZTIME ?= 1m
GOLANGCI := go tool -modfile=tools/go.mod golangci-lint

# $(call step,NAME,COMMAND) says how long a step took: the slow one is easy to find in the CI's log.
define step
	@start=$$SECONDS; echo "== $(1)"; $(2); echo "== $(1): $$((SECONDS - start)) s"
endef

##@ Use
.PHONY: build demo stash stash-story patterns docker
# TAGS=nodemo leaves out the demo and its NATS server, as in the image.
TAGS ?=
build: ## Build bin/lag-monitor: static, no debug information.
	CGO_ENABLED=0 go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/lag-monitor ./cmd/lag-monitor

demo: ## Watch a small pipeline in this terminal and break it with keys.
	go run ./cmd/lag-monitor demo

stash: ## Stash Deferred, the service that lag-monitor was first written for, and all that watches it: look at it, and break it.
	@cd examples/stash-deferred && go run ./cmd/stage

stash-story: ## The same, broken in seven ways one after the other, with what a responder sees each time.
	@cd examples/stash-deferred && go run ./cmd/stage --story

# PATTERN=work-queue runs that one.
PATTERN ?=
patterns: ## Ten ways to use queues, each watched and broken on purpose: a list of them. PATTERN=NAME runs one.
	@cd examples/patterns && go run ./cmd/patterns $(PATTERN)

docker: ## Build the container image lag-monitor:VERSION.
	docker build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -t lag-monitor:$(VERSION) .

##@ Check
.PHONY: test test-short lint modules servers unit e2e conform waiting faults soak sim mutants together nested image faults-core
test: lint modules servers unit together faults-core waiting nested image ## All that the CI runs, on real servers that it fetches and starts itself.

test-short: ## Tests that need neither servers nor patience.
	@echo "Left out: all tests on real Kafka, Kinesis, Prometheus and Alertmanager, and those that are slow. make test runs them."
	env -u LAG_MONITOR_TEST_SERVERS go test -short ./...

lint: ## gofmt, go vet and golangci-lint.
	$(call step,gofmt,test -z "$$(gofmt -l . | tee /dev/stderr)")
	$(call step,go vet,go vet ./...)
	$(call step,golangci-lint,$(GOLANGCI) run ./...)

modules: ## The modules are what go.sum says, and each go.mod is tidy.
	$(call step,go mod verify,go mod verify)
	$(call step,go mod tidy,go mod tidy -diff)
	$(call step,go mod tidy in nested modules,scripts/nested.sh 'go mod tidy -diff')

servers: ## Fetch the real servers for the tests: once, into LAG_MONITOR_TEST_SERVERS.
	$(call step,servers,bash internal/servers/install.sh)

# All is compiled first: beside the compiler, tests that are held against the clock come late. Only linking is left then.
# The longest ones go first, so that none of them is left over at the end. Those of sinks are shared out, since they wait.
LONGEST := ./internal/web ./rules ./internal/servers ./probe
REST = go test $(RACE) -shuffle=on -timeout 20m $$(go list $(LONGEST) ./... | awk "!/\/(sinks|internal\/(conform|e2e|faults))$$/ && !seen[\$$0]++")
unit: ## All tests of this module, with the race detector. Fuzz targets run their seeds.
	$(call step,compile what tests are made of,go list -export -deps -test $(RACE) ./... >/dev/null)
	$(call step,go test,NICE=0 scripts/beside.sh 'scripts/shards.sh sinks 3 $(RACE)' '$(REST)')

e2e: servers ## The tests of the binary from outside, between real servers.
	$(call step,go test ./internal/e2e,go test $(RACE) -shuffle=on -timeout 30m ./internal/e2e)

conform: servers ## The conformance suite: each transport against its real server.
	$(call step,conformance suite,scripts/shards.sh internal/conform 3 $(RACE))

# More beside them starves the servers.
waiting: servers ## The tests of make conform and make e2e side by side.
	$(call step,conform beside e2e,NICE=0 scripts/beside.sh '$(MAKE) e2e' '$(MAKE) conform')

# RUN=kafka/half_open takes one row, RUN=kafka all of a kind; WRITE=1 writes what is measured into docs/reliability.md.
# Rows wait most of the time, so many run at once; without the race detector, which is for the daemon, and that is a process of its own.
RUN ?=
faults: servers ## Break one thing after the other on real brokers, and hold the monitor against what happened.
	$(call step,faults,go test -count=1 -timeout 40m -parallel 100 $(if $(RUN),-v -run '^TestFaults$$/^$(subst /,$$/^,$(RUN))$$') ./internal/faults $(if $(WRITE),-write))

# All rows of the nine kinds that are through soon, and of the others what has to hold on every transport.
faults-core: servers ## make faults without the rows that core in internal/faults/faults_test.go leaves out.
	$(call step,faults (core),go test -count=1 -timeout 30m -parallel 100 ./internal/faults -core)

# Each of its waits is bounded, so that it needs no limit of its own.
SOAK ?= 1h
SEED ?=
soak: servers ## Faults at random for SOAK (1h), one daemon, all kinds of queues: nothing miscounted, nothing leaked. SEED repeats a run.
	$(call step,soak of $(SOAK),go test $(RACE) -count=1 -timeout 0 -v -run '^TestSoak$$' ./internal/faults -soak $(SOAK) $(if $(SEED),-soak-seed $(SEED)))

# The same seeds each time, so that a failure is of the change at hand. FRESH=5000 searches among seeds that were never
# run. The count of each kind of event is told.
SEEDS ?= 10000
FRESH ?= 0
sim: ## The monitor against the oracle: 10,000 simulated runs with over a million heartbeats. SEEDS sets another number.
	$(call step,simulated runs,go test ./internal/sim -run 'TestSeeds$$' -v -timeout 40m -seeds $(SEEDS) -fresh $(FRESH) -beats $$(($(SEEDS) * 100)))

mutants: ## Break each rule of the accounts in turn, and require a simulated run to see it.
	$(call step,mutants,go test ./internal/sim -run 'TestMutants$$' -mutants -v -timeout 30m)

# A soak mostly waits, and is held against the clock: what only computes stands back for it.
together: servers ## Five minutes of make soak beside make mutants and make sim.
	$(call step,soak beside simulated runs,scripts/beside.sh '$(MAKE) mutants sim' '$(MAKE) soak SOAK=5m')

# They read files outside of their module, which go test does not look at to tell whether it has to run again.
nested: ## The tests of the modules inside this one.
	$(call step,nested modules,scripts/nested.sh 'go vet ./... && go test -count=1 -timeout 10m ./...')
	$(call step,race detector on the service of the example,cd examples/stash-deferred && go test $(RACE) -timeout 10m ./backend ./frontend ./metrics ./store ./stream)

image: ## What the Dockerfile does, without docker: build from its context, run from an empty read-only root.
	$(call step,image,scripts/image-check.sh)

##@ Measure
.PHONY: bench fuzz
bench: ## All benchmarks: what the monitor costs, then each part.
	go run ./bench
	go test -run '^$$' -bench . -benchmem -timeout 60m ./...
	scripts/nested.sh "go test -run '^$$' -bench . -benchmem -timeout 60m ./..."

fuzz: ## Each fuzz target for FUZZTIME (1m).
	scripts/fuzz.sh $(FUZZTIME)

.PHONY: help
help: ## This list.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
