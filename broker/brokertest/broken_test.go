package brokertest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

// defectVariable is the environment variable that names the broken broker to a child process of this test binary.
const defectVariable = "BROKERTEST_DEFECT"

// hooks replaces parts of a session. A nil field leaves its part as it is.
type hooks struct {
	publish func(s broker.Session, ctx context.Context, msgs []broker.Message, done func(i int, err error))
	declare func(s broker.Session, ctx context.Context, t broker.Topology) error
	consume func(o *broker.ConsumeOptions)
	limit   func(c broker.Consumer, ctx context.Context, n int) error
	caps    func(c *broker.Capabilities)
	deliver func(d *broker.Delivery)
	settler func(s broker.Session, d broker.Delivery) broker.Settler
	stopped func(unreceived broker.Delivery)
	tryGet  func(ds []broker.Delivery) []broker.Delivery
	inspect func(i *broker.QueueInfo)
	err     func(err error) error
	restart func(s broker.Session)
}

// defect is one way to break a broker, with the test that must catch it.
type defect struct {
	name, area, test string
	make             func() hooks // called for every broker
}

// allDefects returns the broken brokers that the suite must catch, at least one for each area.
func allDefects() []defect { return slices.Concat(defects, delayDefects, failureDefects) }

func TestSuiteCatchesBrokenBrokers(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8) // children mostly wait for events that never come
	for _, d := range allDefects() {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBrokenBroker$/^"+d.area+"$", "-test.v", "-test.parallel=8")
			cmd.Env = append(os.Environ(), defectVariable+"="+d.name)
			out, err := cmd.CombinedOutput()
			want := "--- FAIL: TestBrokenBroker/" + d.area + "/" + strings.ReplaceAll(d.test, " ", "_") + " "
			switch {
			case err == nil:
				t.Errorf("%s: area %s passed", d.name, d.area)
			case !strings.Contains(string(out), want):
				t.Errorf("%s: area %s failed, but not %q: %v\n%s", d.name, d.area, d.test, err, out)
			case strings.Contains(string(out), "panic: ") || strings.Contains(string(out), "DATA RACE"):
				t.Errorf("%s: the suite or the broken broker panicked or has a data race:\n%s", d.name, out)
			}
		})
	}
	wg.Wait()
}

func TestEveryAreaCatchesSomething(t *testing.T) {
	t.Parallel()
	all := allDefects()
	for _, ar := range areas {
		if !slices.ContainsFunc(all, func(d defect) bool { return d.area == ar.name }) {
			t.Errorf("area %s has no broken broker to catch", ar.name)
		}
	}
}

// TestBrokenBroker runs the suite on a broken broker. TestSuiteCatchesBrokenBrokers runs it in a child process, where
// it must fail.
func TestBrokenBroker(t *testing.T) {
	name := os.Getenv(defectVariable)
	all := allDefects()
	i := slices.IndexFunc(all, func(d defect) bool { return d.name == name })
	if i < 0 {
		t.Skip("runs in a child process")
	}
	Run(t, Harness{
		New:  func(testing.TB) broker.Broker { return &broken{Broker: memory.New(), hooks: all[i].make()} },
		Kill: func(_ testing.TB, b broker.Broker) { b.(*broken).KillSessions() },
		Restart: func(tb testing.TB, b broker.Broker) {
			x := b.(*broken)
			if x.restart != nil {
				s, err := x.Broker.Open(tb.Context())
				if err != nil {
					tb.Fatal(err)
				}
				x.restart(s)
			}
			x.KillSessions()
		},
	})
}

type broken struct {
	*memory.Broker
	hooks
}

func (b *broken) Open(ctx context.Context) (broker.Session, error) {
	s, err := b.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &brokenSession{Session: s, b: b}, nil
}

type brokenSession struct {
	broker.Session
	b *broken
}

func (s *brokenSession) Publish(ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
	if f := s.b.publish; f != nil {
		f(s.Session, ctx, msgs, done)
		return
	}
	s.Session.Publish(ctx, msgs, done)
}

func (s *brokenSession) Declare(ctx context.Context, t broker.Topology) error {
	if f := s.b.declare; f != nil {
		return f(s.Session, ctx, t)
	}
	return s.Session.Declare(ctx, t)
}

func (s *brokenSession) Consume(ctx context.Context, o broker.ConsumeOptions) (broker.Consumer, error) {
	wanted := o.Prefetch
	if s.b.consume != nil && wanted > 0 {
		s.b.consume(&o)
	}
	c, err := s.Session.Consume(ctx, o)
	if err != nil {
		return nil, err
	}
	return &brokenConsumer{tapped: tap(c, max(wanted, o.Prefetch, o.MaxPrefetch), s.wrap), b: s.b}, nil
}

func (s *brokenSession) TryGet(ctx context.Context, queue string, max int) ([]broker.Delivery, error) {
	ds, err := s.Session.TryGet(ctx, queue, max)
	for i := range ds {
		ds[i] = s.wrap(ds[i])
	}
	if s.b.tryGet != nil {
		ds = s.b.tryGet(ds)
	}
	return ds, err
}

func (s *brokenSession) Inspect(ctx context.Context, queue string) (broker.QueueInfo, error) {
	i, err := s.Session.Inspect(ctx, queue)
	if s.b.inspect != nil {
		s.b.inspect(&i)
	}
	return i, err
}

func (s *brokenSession) Err() error {
	if err := s.Session.Err(); err == nil || s.b.err == nil {
		return err
	}
	return s.b.err(s.Session.Err())
}

// Capabilities reports that losses are not exact, because tap receives deliveries that the test does not receive.
func (s *brokenSession) Capabilities() broker.Capabilities {
	caps := s.Session.Capabilities()
	caps.ExactLosses = false
	if s.b.caps != nil {
		s.b.caps(&caps)
	}
	return caps
}

func (s *brokenSession) wrap(d broker.Delivery) broker.Delivery {
	if s.b.deliver != nil {
		s.b.deliver(&d)
	}
	if s.b.settler != nil {
		d.Settler = s.b.settler(s.Session, d)
	}
	return d
}

type brokenConsumer struct {
	*tapped
	b *broken
}

func (c *brokenConsumer) SetPrefetch(ctx context.Context, n int) error {
	if c.b.limit != nil {
		return c.b.limit(c.Consumer, ctx, n)
	}
	return c.tapped.SetPrefetch(ctx, n)
}

func (c *brokenConsumer) Stop(ctx context.Context) error {
	for c.b.stopped != nil {
		select {
		case d, ok := <-c.out:
			if ok {
				c.b.stopped(d)
				continue
			}
		default:
		}
		break
	}
	return c.tapped.Stop(ctx)
}
