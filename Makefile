# Lateen. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
FUZZTIME ?= 2000x
TOOL := $(GO) tool -modfile=tools/go.mod
PKGS := ./...
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X lateen.dev/lateen/internal/version.Version=$(VERSION)
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := build
.PHONY: build demo test check race mutation scenarios conformance bench pgo fuzz fmt lint generate preflight help examples cross

build: ## build bin/lateen, bin/lateen-proxy and bin/lateen-node
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/lateen ./cmd/lateen-proxy ./cmd/lateen-node

examples: ## build the example services into bin/examples
	$(GO) build -ldflags '-s -w' -o bin/examples/ ./examples/orders/...

demo: build examples ## run the example mesh until Ctrl-C (an ordinary user is enough)
	bin/lateen up -f examples/orders

test: build examples ## pass all tests: unit tests and scenarios
	$(GO) test -timeout 30m $(PKGS)

scenarios: build ## run the readable specification alone
	$(GO) test ./scenarios -count=1 -v -run Scenarios

conformance: ## foreign judges: h2spec, gRPC interop and others; real Envoys run the scenarios as sidecars
	$(GO) test ./internal/testkit/conformance -count=1 -timeout 20m -v
	$(GO) test ./scenarios -count=1 -timeout 30m -v -run Envoy

mutation: ## switch off each translated field in turn; some scenario must fail
	$(GO) test ./scenarios -count=1 -run Mutation -v

race: ## unit tests of the concurrent packages under the race detector
	CGO_ENABLED=1 $(GO) test -race ./internal/proxy/... ./internal/control/... ./internal/dns/... ./internal/api/...

pgo: build ## profile the request path anew for cmd/lateen-proxy/default.pgo
	bash bench/pgo.sh

fuzz: ## fuzz every target for FUZZTIME (smoke)
	FUZZTIME=$(FUZZTIME) GO="$(GO)" bash tools/fuzz.sh

bench: build ## measure against peers; results land in bench/results
	bash bench/run.sh

fmt: ## format the tree
	$(TOOL) gofumpt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')

lint: ## gofumpt, vet and staticcheck
	@out=$$($(TOOL) gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); if [ -n "$$out" ]; then echo "not gofumpt-formatted:"; echo "$$out"; exit 1; fi
	$(GO) vet $(PKGS)
	$(TOOL) staticcheck $(PKGS)

cross: ## everything builds for arm64 too, and the command line for other systems
	GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/lateen
	GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/lateen-proxy
	GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/lateen-node
	GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/lateen

check: lint test race fuzz cross ## everything that CI demands
	$(GO) mod tidy -diff

preflight: ## say what this machine can do and install what CI needs
	bash tools/preflight.sh

generate: ## regenerate protobuf code (needs protoc and protoc-gen-go)
	for p in nds origin istioca; do protoc -I internal/xdspb/$$p --go_out=internal/xdspb/$$p --go_opt=paths=source_relative $$p.proto; done

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12
