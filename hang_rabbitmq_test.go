package dispatcher_test

import (
	"os"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A queue that does not answer, with no task running: Close waits for it once.
func TestCloseWithAQueueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	ctl := os.Getenv("DISPATCHER_RABBITMQCTL")
	if ctl == "" || os.Getenv("DISPATCHER_TEST_NODES") != "1" {
		t.Skip("needs DISPATCHER_TEST_NODES=1 and DISPATCHER_RABBITMQCTL, beside DISPATCHER_AMQP_CON, to suspend a queue of that node")
	}
	r := newPlace(t)
	r.serve(r.ownQueue, func(c *dispatcher.ServerConfig) { c.ShutdownTimeout = time.Hour })
	r.worker(tasks{"f": fn(func() {})})
	pid := `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"` + r.name + `">>)), sys:`
	control(t, ctl, "eval", pid+`suspend(amqqueue:get_pid(Q)).`)
	defer control(t, ctl, "eval", pid+`resume(amqqueue:get_pid(Q)).`)
	began := time.Now()
	closed := make(chan struct{})
	go func() { defer close(closed); r.server.Close() }()
	wait(t, closed, "end of Close")
	t.Logf("Close took %v", time.Since(began))
}
