# make demo       the whole job, for real, in a throw-away Active Directory
# make test       unit tests, Samba integration, recorded Windows requests, race detector
# Both install what they lack: Go modules, and as root the Debian packages.

SHELL := /bin/bash
GO ?= go
CMD ?=
export PATH := $(PATH):/usr/local/go/bin
# What private keys leave in registers and on stacks is erased: package runtime/secret.
export GOEXPERIMENT := runtimesecret

.PHONY: build demo demo-shell demo-run demo-run-steps test test-kill upstreams test-hostile fuzz bench bench-keys lint deps clean

build:
	@CGO_ENABLED=1 $(GO) build -tags netgo,osusergo -o bin/enrollgate ./cmd/enrollgate

deps:
	@test/deps.sh 1>&2

demo: deps build
	@bin/enrollgate demo

demo-shell: deps build
	@bin/enrollgate demo --shell

# Standard output has only what CMD prints, and make ends with CMD's exit code (without the extension in test/make, which
# needs a C compiler, make turns every code but 0 into 2).
ifneq ($(filter demo-run,$(MAKECMDGOALS)),)
-load bin/makeexit.so
bin/makeexit.so: test/make/makeexit.c
	@mkdir -p bin && { cc -shared -fPIC -o $@ $<; } >/dev/null 2>&1
endif

demo-run-steps: deps build
	@status=0; bin/enrollgate demo --run '$(subst ','\'',$(value CMD))' || status=$$?; \
		[ -e bin/makeexit.so ] || exit $$status; echo $$status > bin/demo-run.status

demo-run: demo-run-steps
	@: $(exit-with $(shell cat bin/demo-run.status; rm -f bin/demo-run.status))

test: deps build
	@test/run.sh

# A thousand kills at random moments, and at every effect of an enrollment; make test does three dozen of the former.
test-kill: deps build
	@KILL_ROUNDS=350 test/lab/lab.sh ns $(GO) test ./test/kill -count=1 -v -timeout 30m

# Builds the CAs that the drivers are tried on, once, and tries them; make test does the same among everything else.
upstreams: deps
	@test/upstreams/all.sh
	@$(GO) test ./test/upstreams/... -count=1 -timeout 10m
	@test/lab/lab.sh ns $(GO) test ./test/stepca -count=1 -timeout 10m

# Every octet of every recorded request flipped, and every prefix, through the listener; make test does every seventh.
test-hostile: deps build
	@set -o pipefail; ENROLLGATE_LONG=1 test/lab/lab.sh ns $(GO) test ./test/e2e -run HostileInput -count=1 -v -timeout 15m | grep -vE '^ *(===|---)|octets, '

# Every fuzz target for FUZZTIME (5s).
fuzz: deps
	@test/fuzz.sh

bench: deps build
	@test/lab/lab.sh ns $(GO) test ./test/bench -run '^$$' -bench . -benchtime 2s
	@$(GO) test ./gateway/escrow -run '^$$' -bench Refusals

# What archived keys cost among a million of them; KEYS_ON=postgres for PostgreSQL. Filling takes a quarter of an hour.
KEYS ?= 1000000
bench-keys: deps
	@KEYS=$(KEYS) $(GO) test ./test/bench -run '^$$' -bench Keys -benchtime 1x -timeout 3h

lint:
	@test/lint.sh

clean:
	@rm -rf bin
