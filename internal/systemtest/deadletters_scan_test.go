package systemtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// dying is a broker on which a task dies after every TryGet and Inspect.
type dying struct {
	broker.Broker
	die func()
}

func (d *dying) Open(ctx context.Context) (broker.Session, error) {
	s, err := d.Broker.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &dyingSession{s, d.die}, nil
}

type dyingSession struct {
	broker.Session
	die func()
}

func (s *dyingSession) TryGet(ctx context.Context, queue string, max int) ([]broker.Delivery, error) {
	defer s.die()
	return s.Session.TryGet(ctx, queue, max)
}

func (s *dyingSession) Inspect(ctx context.Context, queue string) (broker.QueueInfo, error) {
	defer s.die()
	return s.Session.Inspect(ctx, queue)
}

// A scan counts the letters once, right after its first TryGet. At most one new letter, which arrived between the two,
// is seen.
func TestAScanEndsWhileTasksGoOnDying(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		mem := memory.New()
		testScansBesideDeaths(t, &graveyard{t: t, queue: "jobs", broker: mem}, dispatcher.ServerConfig{Exchange: "jobs"})
	})
	t.Run("rabbitmq", func(t *testing.T) {
		t.Parallel()
		r := newPlace(t)
		b, err := rabbitmq.New(rabbitmq.Config{URLs: []string{r.url.String()}})
		if err != nil {
			t.Fatal(err)
		}
		testScansBesideDeaths(t, &graveyard{t: t, queue: r.name, broker: b}, dispatcher.ServerConfig{Exchange: r.name})
	})
}

func testScansBesideDeaths(t *testing.T, g *graveyard, cfg dispatcher.ServerConfig) {
	next, enough := 0, 0 // the number of letters so far, and the number at which tasks stop dying, so that an endless scan ends
	b := &dying{g.broker, func() {
		if next < enough {
			g.put(g.queue+".dead", g.letter(next))
			next++
		}
	}}
	cfg.Broker, cfg.DefaultRoutingKey, cfg.Logger = b, "key", quiet
	server, _, err := dispatcher.NewServer(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	g.server = server
	g.open()
	all := filter{Since: died(0)}
	methods := map[string]func() (int, error){
		"Delete": func() (int, error) { return g.dead.Delete(t.Context(), all) },
		"Replay": func() (int, error) { return g.dead.Replay(t.Context(), all) },
		"List": func() (int, error) {
			letters, err := g.dead.List(t.Context(), all, dispatcher.Page{Limit: 1000})
			for i, l := range letters {
				if number(t, l.UUID) != i {
					t.Errorf("%q is at position %d", l.UUID, i)
				}
			}
			return len(letters), err
		},
		"Get": func() (int, error) {
			_, err := g.dead.Get(t.Context(), "nobody")
			if errors.Is(err, dispatcher.ErrDeadLetterNotFound) {
				err = nil
			}
			return 0, err
		},
	}
	for _, before := range []int{0, 1, 3, 4, 50} {
		for method, call := range methods {
			what := fmt.Sprintf("%s of %d", method, before)
			next, enough = before, before+100
			g.bury(0, before)
			n, err := call()
			if method != "Get" && n != before && (n != before+1 || before < 4) || err != nil {
				t.Errorf("%s returned %d, %v", what, n, err)
			}
			if next == enough {
				t.Errorf("%s ended only when tasks stopped dying", what)
			}
			first := 0 // the first letter that stays
			if method == "Delete" || method == "Replay" {
				first = n
			}
			enough = 0
			g.settledReady(g.queue+".dead", next-first)
			for i, m := range g.take(g.queue + ".dead") {
				if number(t, m.ID) != first+i {
					t.Errorf("%s: %q is at position %d afterwards", what, m.ID, i)
				}
			}
			if replayed := len(g.take(g.queue)); method == "Replay" && replayed != n {
				t.Errorf("%s: %d tasks in the queue", what, replayed)
			}
		}
	}
}
