package rabbitmq

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
)

// tube is a connection whose writes wait until the test takes them.
type tube struct {
	net.Conn
	writes chan []byte
	broken chan struct{}
}

var errTube = errors.New("broken")

func (c *tube) Write(b []byte) (int, error) {
	select {
	case c.writes <- bytes.Clone(b):
		return len(b), nil
	case <-c.broken:
		return 0, errTube
	}
}

// What is queued while the socket is busy goes out in one write. Messages wait for room, within their context.
func TestOutgoingSharesAWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &tube{writes: make(chan []byte), broken: make(chan struct{})}
		o := &outgoing{Conn: c}
		ctx, cancel := context.WithCancel(t.Context())
		for _, s := range []string{"a", "b", "c"} {
			if _, err := o.Write([]byte(s)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if first, second := string(<-c.writes), string(<-c.writes); first != "a" || second != "bc" {
			t.Errorf("written: %q, %q", first, second)
		}
		synctest.Wait()
		if err := o.pass(ctx, nil); err != nil || o.full() {
			t.Errorf("no room when all is written: %v", err)
		}
		for range 2 { // one is being written
			_, _ = o.Write(make([]byte, roomy+1))
			synctest.Wait()
		}
		passed := make(chan error, 2)
		go func() { passed <- o.pass(ctx, nil) }()
		synctest.Wait()
		cancel()
		if err := <-passed; !errors.Is(err, context.Canceled) {
			t.Errorf("a message that waits for room: %v", err)
		}
		go func() { passed <- o.pass(context.Background(), nil) }()
		<-c.writes
		if err := <-passed; err != nil {
			t.Errorf("room after a write: %v", err)
		}
		if _, err := o.Write(make([]byte, 4<<20)); err != nil { // it would hang here
			t.Errorf("a write while the socket takes nothing: %v", err)
		}
		synctest.Wait()
		handed := o.handed.Load()
		close(c.broken)
		<-o.flushing.zero()
		if _, err := o.Write([]byte("more")); !errors.Is(err, errTube) {
			t.Errorf("a write after the socket broke: %v", err)
		}
		if o.handed.Load() != handed {
			t.Error("something was written after an error")
		}
	})
}
