// Package systemtest tests the whole library through its public API. It contains only tests. dispatcher_test.go in the
// root is the short version, with one test for each promise. The tests here go into depth, one file per theme.
//
// # Venues
//
// Most tests start real servers and workers on a broker:
//
//   - newRig (kit_rig_test.go) starts a server on an embedded broker of its own. The test can break the broker.
//     Many of these tests run on the fake clock of testing/synctest.
//   - everywhere (kit_venue_test.go) runs a test twice: on the embedded broker and on RabbitMQ.
//   - onBothBrokers (kit_deadletters_test.go) does the same for a queue of dead letters.
//   - newRabbit (kit_rabbitmq_test.go) starts a server that reaches RabbitMQ through a proxy. The proxy can cut and
//     stall the link.
//   - newNode and newCluster (kit_node_test.go, kit_cluster_test.go) start RabbitMQ nodes that the test may kill.
//
// On RabbitMQ, each test has an exchange and queues with a random name, and deletes them when it ends. So tests of this
// package, of the root and of broker/rabbitmq can share a node at the same time. A test that changes a whole node
// starts its own.
//
// The files kit_*_test.go hold what the tests share. Tests that measure the heap are not parallel.
//
// # Running a test on RabbitMQ
//
// Without DISPATCHER_AMQP_CON the tests on RabbitMQ are skipped. In the root of the repository:
//
//	scripts/brokers.sh start DIR
//	set -a; . DIR/env; set +a
//	go test -race -count=1 -run TestRabbitMQ_D10 ./internal/systemtest
//	scripts/brokers.sh stop DIR
//
// With DISPATCHER_TEST_NODES=1, tests may also start nodes of their own and use rabbitmqctl on the shared one.
// `make test`, `make cluster`, `make chaos` and `make test-rabbitmq4` do all of this by themselves.
package systemtest
