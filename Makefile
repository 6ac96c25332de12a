# Two commands do everything: `make demo` and `make test`.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 10s

.DEFAULT_GOAL := help
.PHONY: help demo test cluster check fuzz allocs microbench bench bench-docs test-rabbitmq4 chaos toolchain

BENCH = dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && scripts/brokers.sh run "$$dir" -- bench/peers.sh go -C bench run .

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Run a real job on the embedded broker: SHA-256 of every file of this project
	@go run ./examples/checksums

# internal/systemtest takes longest, so it starts first. In the other modules, go warns that this pattern matches
# nothing.
test: toolchain check fuzz allocs ## Install what is missing, start RabbitMQ, then run every check and every test of every module
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && DISPATCHER_TEST_NODES=1 scripts/brokers.sh run "$$dir" -- \
		scripts/modules.sh env CGO_ENABLED=1 go test -race -count=1 -timeout 15m ./.../systemtest ./...

cluster: toolchain ## Break a cluster of three nodes under load in every way, and print the outcome of the tasks (twenty minutes)
	@DISPATCHER_TEST_NODES=1 CGO_ENABLED=1 go test -race -count=1 -timeout 30m -v -run '^TestCluster' ./internal/systemtest -cluster.full

check: ## Run gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	@scripts/modules.sh go vet ./...
	@scripts/modules.sh go run $(STATICCHECK) ./...
	@echo "gofmt, go vet, staticcheck: ok"

fuzz: ## Run each fuzz target for FUZZTIME (10s)
	@scripts/modules.sh "$(CURDIR)/scripts/fuzz.sh" $(FUZZTIME)

allocs: ## Compare the allocations of each step with the committed figures
	@go test -count=1 -run '^TestAllocations' . ./internal/systemtest

microbench: ## Measure decoding and dispatch, and the whole way of a task through the embedded broker
	@go test -run '^$$' -bench . -benchmem ./...

bench: ## Compare with programs by hand, asynq and River on real servers (ten minutes; as root, installs missing servers); ARGS='-rows drain'
	@$(BENCH) $(ARGS)

bench-docs: ## Run bench, measure growth, and write docs/performance.md and docs/plots (half an hour)
	@$(BENCH) -page ../docs/performance.md -plots ../docs/plots $(ARGS)
	@$(BENCH) -growth -page ../docs/performance.md -plots ../docs/plots $(ARGS)

test-rabbitmq4: toolchain ## Run every test that needs RabbitMQ, on 4.0 and then on 4.3 (as root; unpacks Debian's packages once, 250 MB each)
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && for version in 4.0 4.3; do \
		echo "RabbitMQ $$version:"; \
		DISPATCHER_AMQP_CON= DISPATCHER_RABBITMQ=$$version DISPATCHER_TEST_NODES=1 scripts/brokers.sh run "$$dir/$$version" -- \
			env CGO_ENABLED=1 go test -race -count=1 -timeout 30m . ./internal/systemtest ./broker/rabbitmq || exit; \
	done

chaos: ## Run the tests that take too long for make test: a storm of 10,000 tasks, 10,000,000 tasks and 1,000 reconnects beside one task, 10,000,000 through PublishAll (forty minutes)
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && scripts/brokers.sh run "$$dir" -- \
		go test -count=1 -timeout 90m -v -run '^(TestARetryStormLeavesNothingBehind|TestTheHeap.*)$$' ./internal/systemtest \
			-storm.tasks 10000 -heap.tasks 10000000 -heap.reconnects 1000 -heap.published 10000000

toolchain: # installs the C compiler that the race detector needs
	@scripts/toolchain.sh
