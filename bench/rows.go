package main

// work is something that several programs do. Their rows are measured one after another in each round.
type work struct {
	name  string
	share float64 // one measurement has this many times -tasks
	rows  []*row
}

// row is one program that does the work. The first row of a work is the program by hand that the others are compared
// with.
type row struct {
	program    string
	guarantees string
	server     server
	run        func(*measurement) error

	samples []sample // one for each round
	missing string   // why there are none
}

// server is the broker that a row uses, so that its CPU time can be measured.
type server int

const (
	nothing server = iota
	rabbitMQ
	redisServer
	postgreSQL
)

const (
	confirmed  = "Each task is confirmed when RabbitMQ has it on disk, and the confirm is awaited. A task that no queue takes is lost unnoticed."
	noticed    = "Each task is confirmed when RabbitMQ has it on disk, and the confirm is awaited. A task that no queue takes is noticed."
	ours       = "Each task is confirmed when RabbitMQ has it on disk and in a queue. Otherwise its error says: not sent, rejected, unconfirmed."
	inPostgres = "The transaction that inserts the task is committed and on disk."
	inRedis    = "Redis has the task in memory, and within a second on disk (appendfsync everysec)."

	grouped     = "At least once. One ack settles a hundred messages. Nothing is decoded, and no function is called."
	withJSON    = "At least once. One ack settles a hundred messages. Bodies are decoded, and no function is called."
	single      = "At least once, with an ack for each message. Nothing is decoded, and no function is called."
	afterReturn = "At least once. A task is acked after its function has returned. A failed task becomes a dead letter."
	asynqRuns   = "At least once. A task is settled after its function has returned. A task of a killed worker runs again when its lease has ended."
	riverTuned  = "At least once. A task is settled, together with others, after its function has returned. FetchCooldown is 1 ms; with the default of 100 ms, 10 slots run 100 tasks a second."
	riverRuns   = "At least once. A task is settled, together with others, after its function has returned. All settings are the defaults."
	singleJSON  = "At least once, confirmed, decoded, with an ack for each message."

	onceInMemory  = "At most once. Tasks are lost when the process ends."
	leastInMemory = "At least once while the process lives. A failed task becomes a dead letter."
)

// allWork returns the works and rows of the comparison, without samples.
func allWork() []*work {
	return []*work{
		{name: "publish, 1 goroutine, in batches", share: 1, rows: []*row{
			{program: "by hand, 1,000 unconfirmed at a time", guarantees: confirmed, server: rabbitMQ, run: pipelined.publish},
			{program: "by hand, with the library's flags and properties", guarantees: noticed, server: rabbitMQ, run: byHand{goroutines: 1, window: 1000, flags: true}.publish},
			{program: "Dispatcher, PublishBatch", guarantees: ours, server: rabbitMQ, run: publishWith(inBatches)},
			{program: "Dispatcher, PublishAll", guarantees: ours, server: rabbitMQ, run: publishWith(asSequence)},
			{program: "Dispatcher, PublishAsync", guarantees: ours, server: rabbitMQ, run: publishWith(withoutWaiting)},
			{program: "streadway/amqp by hand", guarantees: confirmed, server: rabbitMQ, run: publishWithStreadway(1000)},
			{program: "River, InsertManyFast", guarantees: inPostgres, server: postgreSQL, run: publishBatchesWithRiver},
		}},
		{name: "publish, 1 goroutine, one by one", share: 0.1, rows: []*row{
			{program: "by hand", guarantees: confirmed, server: rabbitMQ, run: byHand{goroutines: 1, window: 1}.publish},
			{program: "by hand, with the library's flags and properties", guarantees: noticed, server: rabbitMQ, run: byHand{goroutines: 1, window: 1, flags: true}.publish},
			{program: "Dispatcher, Publish", guarantees: ours, server: rabbitMQ, run: publishWith(fromGoroutines(1))},
			{program: "streadway/amqp by hand", guarantees: confirmed, server: rabbitMQ, run: publishWithStreadway(1)},
			{program: "asynq", guarantees: inRedis, server: redisServer, run: publishWithAsynq(1)},
			{program: "River", guarantees: inPostgres, server: postgreSQL, run: publishWithRiver(1)},
		}},
		{name: "publish, 64 goroutines", share: 1, rows: []*row{
			{program: "by hand, on one channel", guarantees: confirmed, server: rabbitMQ, run: byHand{goroutines: 64, window: 1}.publish},
			{program: "by hand, with the library's flags and properties", guarantees: noticed, server: rabbitMQ, run: byHand{goroutines: 64, window: 1, flags: true}.publish},
			{program: "Dispatcher, Publish", guarantees: ours, server: rabbitMQ, run: publishWith(fromGoroutines(64))},
			{program: "asynq", guarantees: inRedis, server: redisServer, run: publishWithAsynq(64)},
			{program: "River", guarantees: inPostgres, server: postgreSQL, run: publishWithRiver(64)},
		}},
		{name: "drain, Limit 10, classic queue", share: 1, rows: []*row{
			{program: "by hand, prefetch 1,000, an ack for 100", guarantees: grouped, server: rabbitMQ, run: drainByHand{prefetch: 1000, group: 100}.run},
			{program: "the same with encoding/json", guarantees: withJSON, server: rabbitMQ, run: drainByHand{prefetch: 1000, group: 100, decode: true}.run},
			{program: "by hand, prefetch 10, single acks", guarantees: single, server: rabbitMQ, run: drainByHand{prefetch: 10, group: 1}.run},
			{program: "Dispatcher", guarantees: afterReturn, server: rabbitMQ, run: drainWith(classic, 10, 0)},
			{program: "streadway/amqp by hand", guarantees: grouped, server: rabbitMQ, run: drainWithStreadway},
			{program: "asynq", guarantees: asynqRuns, server: redisServer, run: drainWithAsynq},
			{program: "River", guarantees: riverTuned, server: postgreSQL, run: drainWithRiver},
		}},
		{name: "drain, Limit 100, classic queue", share: 1, rows: []*row{
			{program: "by hand, prefetch 1,000, an ack for 100", guarantees: grouped, server: rabbitMQ, run: drainByHand{prefetch: 1000, group: 100}.run},
			{program: "Dispatcher", guarantees: afterReturn, server: rabbitMQ, run: drainWith(classic, 100, 0)},
		}},
		{name: "drain, Limit 1, classic queue", share: 0.5, rows: []*row{
			{program: "by hand, prefetch 1,000, an ack for 100", guarantees: grouped, server: rabbitMQ, run: drainByHand{prefetch: 1000, group: 100}.run},
			{program: "by hand, prefetch 1,000, single acks", guarantees: single, server: rabbitMQ, run: drainByHand{prefetch: 1000, group: 1}.run},
			{program: "Dispatcher", guarantees: afterReturn, server: rabbitMQ, run: drainWith(classic, 1, 0)},
		}},
		{name: "drain, Limit 10, quorum queue", share: 1, rows: []*row{
			{program: "by hand, prefetch 1,000, an ack for 100", guarantees: grouped, server: rabbitMQ, run: drainByHand{kind: quorum, prefetch: 1000, group: 100}.run},
			{program: "Dispatcher", guarantees: afterReturn, server: rabbitMQ, run: drainWith(quorum, 10, 0)},
		}},
		{name: "one task at a time, from publish to function", share: 0.1, rows: []*row{
			{program: "by hand", guarantees: singleJSON, server: rabbitMQ, run: latencyByHand},
			{program: "Dispatcher", guarantees: afterReturn, server: rabbitMQ, run: latencyWith},
			{program: "asynq", guarantees: asynqRuns, server: redisServer, run: latencyWithAsynq},
			{program: "River", guarantees: riverRuns, server: postgreSQL, run: latencyWithRiver},
		}},
		{name: "embedded, publish to function, 10 slots", share: 10, rows: []*row{
			{program: "by hand: encoding/json and a channel", guarantees: onceInMemory, run: channelByHand(false)},
			{program: "Dispatcher, PublishBatch", guarantees: leastInMemory, run: embeddedWith(false)},
		}},
		{name: "embedded, drain, 10 slots", share: 10, rows: []*row{
			{program: "by hand: encoding/json and a channel", guarantees: onceInMemory, run: channelByHand(true)},
			{program: "Dispatcher", guarantees: leastInMemory, run: embeddedWith(true)},
		}},
	}
}
