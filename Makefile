# make demo       the whole job, for real, in a throw-away Active Directory
# make test       unit tests, Samba integration, recorded Windows requests, race detector
# Both install what they lack: Go modules, and as root the Debian packages.

SHELL := /bin/bash
GO ?= go
CMD ?=
export PATH := $(PATH):/usr/local/go/bin

.PHONY: build demo demo-shell demo-run test bench lint deps clean

build:
	@CGO_ENABLED=0 $(GO) build -o bin/enrollgate ./cmd/enrollgate

deps:
	@test/deps.sh 1>&2

demo: deps build
	@bin/enrollgate demo

demo-shell: deps build
	@bin/enrollgate demo --shell

# Standard output has only what CMD prints. make itself turns every exit code but 0 into 2, and names the real one
# on standard error; bin/enrollgate demo --run 'CMD' returns it unchanged.
demo-run: deps build
	@bin/enrollgate demo --run '$(subst ','\'',$(CMD))'

test: deps build
	@test/run.sh

bench: deps build
	@test/lab/lab.sh ns $(GO) test ./test/bench -run '^$$' -bench . -benchtime 2s

lint:
	@test/lint.sh

clean:
	@rm -rf bin
