module github.com/seed-416683c9/dispatcher/outbox/bolt

go 1.26.0

require (
	github.com/seed-416683c9/dispatcher v0.0.0
	go.etcd.io/bbolt v1.5.0
	go.uber.org/goleak v1.3.0
)

require (
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/rabbitmq/amqp091-go v1.16.0 // indirect
	github.com/sirupsen/logrus v1.10.2 // indirect
	golang.org/x/sys v0.45.0 // indirect
)

replace github.com/seed-416683c9/dispatcher => ../..
