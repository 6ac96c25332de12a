package systemtest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/broker"
)

func TestADeadLetterIsShownWhole(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		g.bury(0, 3)
		got, err := g.dead.Get(t.Context(), "u00001")
		if err != nil {
			t.Fatal(err)
		}
		want := &dispatcher.DeadLetter{
			UUID: "u00001", Name: "a", Queue: g.queue, RoutingKey: "key", Reason: dispatcher.ReasonFailed, Error: "error 1", Attempts: 3,
			Log: []dispatcher.Attempt{
				{Number: 1, At: time.Date(2026, 1, 2, 3, 4, 5, 5e8, time.UTC), Duration: 12 * time.Millisecond, Worker: "w0", Error: "first"},
				{Number: 3, At: time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC), Duration: time.Millisecond},
			},
			DiedAt: died(1), Worker: "w1", PublishedAt: got.PublishedAt,
			Headers: map[string]any{"tenant": "blue", "list": []any{int64(1), map[string]any{"x": "y"}}},
			Body:    g.letter(1).Body,
		}
		if !got.PublishedAt.Equal(died(1).Truncate(time.Second)) {
			t.Errorf("published at %v", got.PublishedAt)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		task, err := got.Task()
		if err != nil || task.UUID != "u00001" || task.Name != "a" || task.RoutingKey != "key" || task.Headers["tenant"] != "blue" ||
			len(task.Args) != 1 || task.Args[0].Type != "int" || string(task.Args[0].Value.(json.RawMessage)) != "1" {
			t.Errorf("task %+v: %v", task, err)
		}

		// The returned letter belongs to the caller. The embedded broker returns the same message again, so changes
		// must not reach it.
		got.Body[0], got.Headers["tenant"], got.Headers["list"].([]any)[1].(map[string]any)["x"] = 'x', "red", "z"
		if again, err := g.dead.Get(t.Context(), "u00001"); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("the caller's changes reached the broker: %+v: %v", again, err)
		}
		if _, err := g.dead.Get(t.Context(), "nobody"); !errors.Is(err, dispatcher.ErrDeadLetterNotFound) || !strings.Contains(err.Error(), `"nobody"`) {
			t.Errorf("Get of an unknown uuid: %v", err)
		}
	})
}

func TestATaskFromADeadLetterCanBePublishedCorrected(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got := make(chan int8, 1)
	r.worker("w", tasks{"n": fn(func(n int8) { got <- n })})
	r.publish("n", 300)
	d := r.server.DeadLetters("jobs")
	var letters []dispatcher.DeadLetter
	eventually(t, "there is a dead letter", func() (ok bool) {
		letters, _ = d.List(t.Context(), filter{Reason: dispatcher.ReasonBadArguments}, dispatcher.Page{})
		return len(letters) == 1
	})
	task, err := letters[0].Task()
	if err != nil {
		t.Fatal(err)
	}
	task.Args[0].Value = 7
	if err := r.server.Publish(task); err != nil {
		t.Fatal(err)
	}
	if n := wait(t, got, "task"); n != 7 || task.UUID != letters[0].UUID {
		t.Errorf("ran with %d, uuid %q", n, task.UUID)
	}
}

func TestListRemovesNothingAndKeepsTheOrder(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		const n = 30
		g.bury(0, n)
		all := numbers(n, func(int) bool { return true })
		for range 5 { // without a pause: the next call finds the letters that the last one returned
			same(t, "list", g.list(filter{}, dispatcher.Page{}), all)
			same(t, "Bs", g.list(filter{Name: "b"}, dispatcher.Page{Skip: 2, Limit: 3}), []int{6, 9, 12})
			eventually(t, "Count reports all letters", func() bool { got, err := g.dead.Count(t.Context()); return got == n && err == nil })
		}
		var paged []int
		for {
			page := g.list(filter{}, dispatcher.Page{Skip: len(paged), Limit: 7})
			if len(page) == 0 {
				break
			}
			if paged = append(paged, page...); len(paged) > n {
				break
			}
		}
		same(t, "pages", paged, all)
		for i, m := range g.take(g.queue + ".dead") {
			if number(t, m.ID) != i {
				t.Errorf("%q is at position %d", m.ID, i)
			}
		}
	})
}

func TestPagesHaveBounds(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	g.bury(0, 1200)
	for page, want := range map[dispatcher.Page]int{
		{}: 100, {Limit: 1}: 1, {Limit: 1000}: 1000, {Skip: 1100, Limit: 1000}: 100, {Skip: 1200}: 0, {Skip: 1 << 62, Limit: 1000}: 0,
		{Skip: -1}: -1, {Limit: -1}: -1, {Limit: 1001}: -1,
	} {
		letters, err := g.dead.List(t.Context(), filter{}, page)
		if want < 0 != (err != nil) || len(letters) != max(want, 0) {
			t.Errorf("page %+v: %d letters, want %d: %v", page, len(letters), want, err)
		}
		if err != nil && !strings.Contains(err.Error(), "Page.") {
			t.Errorf("%+v: %v does not name the field", page, err)
		}
	}
	same(t, "the page", g.list(filter{}, dispatcher.Page{Skip: 1198}), []int{1198, 1199})
}

func TestAScanPassesOverABoundedNumberOfLetters(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	g.bury(0, 10_000)
	if _, err := g.dead.Get(t.Context(), "nobody"); !errors.Is(err, dispatcher.ErrDeadLetterNotFound) {
		t.Errorf("10,000 letters: %v", err)
	}
	for i := range 10 {
		g.put("jobs.dead", broker.Message{ID: fmt.Sprint("u1000", i), Body: []byte("x")})
	}
	tooMany := func(method string, n int, err error) {
		if n != 0 || err == nil || errors.Is(err, dispatcher.ErrDeadLetterNotFound) || !strings.Contains(err.Error(), "10000") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s among 10,010 letters returned %d, %v", method, n, err)
		}
	}
	_, err := g.dead.Get(t.Context(), "nobody")
	tooMany("Get", 0, err)
	n, err := g.dead.Delete(t.Context(), filter{UUID: "nobody"})
	tooMany("Delete", n, err)
	n, err = g.dead.Replay(t.Context(), filter{UUID: "nobody"})
	tooMany("Replay", n, err)
	if n, err := g.dead.Count(t.Context()); n != 10_010 || err != nil {
		t.Errorf("Count: %d, %v", n, err)
	}
}

func TestTheBodiesOfAPageAreBounded(t *testing.T) {
	t.Parallel()
	g := onMemory(t)
	body := make([]byte, 40<<20)
	g.put("jobs.dead", broker.Message{ID: "u00000", Body: body}, broker.Message{ID: "u00001", Body: body})
	if _, err := g.dead.List(t.Context(), filter{}, dispatcher.Page{}); err == nil || !strings.Contains(err.Error(), "ask for fewer") {
		t.Errorf("List of 80 MiB: %v", err)
	}
	same(t, "one at a time", g.list(filter{}, dispatcher.Page{Skip: 1, Limit: 1}), []int{1})
}

func TestEachFieldOfAFilterChooses(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		const n = 24
		g.bury(0, n)
		foreign := broker.Message{ID: "u00099", Body: []byte("{}")}
		g.put(g.queue+".dead", foreign)
		for _, c := range []struct {
			filter filter
			fits   func(int) bool
		}{
			{filter{UUID: "u00005"}, func(i int) bool { return i == 5 }},
			{filter{UUID: "u0000"}, func(i int) bool { return false }},
			{filter{Name: "b"}, func(i int) bool { return i%3 == 0 }},
			{filter{Reason: dispatcher.ReasonTimeout}, func(i int) bool { return i%4 == 0 }},
			{filter{Since: died(7)}, func(i int) bool { return i >= 7 }},
			{filter{Until: died(7)}, func(i int) bool { return i < 7 }},
			{filter{Since: died(3).Add(1), Until: died(9).Add(1).In(time.FixedZone("", 7200))}, func(i int) bool { return i > 3 && i <= 9 }},
			{filter{Name: "b", Reason: dispatcher.ReasonTimeout, Since: died(1), Until: died(24)}, func(i int) bool { return i == 12 }},
		} {
			same(t, fmt.Sprintf("%+v", c.filter), g.list(c.filter, dispatcher.Page{}), numbers(n, c.fits))
		}
		// Delete removes the letters that match the filter, and no others.
		if deleted, err := g.dead.Delete(t.Context(), filter{Name: "b"}); deleted != 8 || err != nil {
			t.Errorf("%d deleted: %v", deleted, err)
		}
		same(t, "the rest", g.list(filter{}, dispatcher.Page{}), append(numbers(n, func(i int) bool { return i%3 != 0 }), 99))
		if _, err := g.dead.Delete(t.Context(), filter{}); err == nil || !strings.Contains(err.Error(), "Purge") {
			t.Errorf("Delete with an empty filter: %v", err)
		}
		if purged, err := g.dead.Purge(t.Context()); purged != 17 || err != nil {
			t.Errorf("%d purged: %v", purged, err)
		}
		eventually(t, "Count reports no letters", func() bool { got, err := g.dead.Count(t.Context()); return got == 0 && err == nil })
	})
}

func TestDeadLettersAreChosenByWhereTheyCameFromAndByHeaders(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
		const n = 6
		msgs := make([]broker.Message, n)
		for i := range msgs {
			msgs[i] = g.letter(i)
			msgs[i].Headers["number"], msgs[i].Headers["even"], msgs[i].Headers["at"] = int64(i), i%2 == 0, at.Add(time.Duration(i)*time.Hour)
			msgs[i].Headers["x-dispatcher-routing-key"] = fmt.Sprint("key.", i%3)
		}
		g.put(g.queue+".dead", msgs...)
		for name, c := range map[string]struct {
			filter filter
			want   []int
		}{
			"routing key":     {filter{RoutingKey: "key.1"}, []int{1, 4}},
			"another key":     {filter{RoutingKey: "key"}, nil},
			"queue":           {filter{Queue: g.queue}, []int{0, 1, 2, 3, 4, 5}},
			"another queue":   {filter{Queue: "another"}, nil},
			"text":            {filter{Headers: map[string]string{"tenant": "blue"}}, []int{0, 1, 2, 3, 4, 5}},
			"another text":    {filter{Headers: map[string]string{"tenant": "red"}}, nil},
			"number":          {filter{Headers: map[string]string{"number": "4"}}, []int{4}},
			"bool":            {filter{Headers: map[string]string{"even": "false"}}, []int{1, 3, 5}},
			"time":            {filter{Headers: map[string]string{"at": "2026-11-28T14:00:00Z"}}, []int{2}},
			"two":             {filter{Headers: map[string]string{"even": "true", "number": "2"}}, []int{2}},
			"two, one fits":   {filter{Headers: map[string]string{"even": "true", "number": "3"}}, nil},
			"not there":       {filter{Headers: map[string]string{"nobody": ""}}, nil},
			"one of ours":     {filter{Headers: map[string]string{"x-dispatcher-attempt": "3"}}, nil},
			"with other ones": {filter{Name: "b", RoutingKey: "key.0", Headers: map[string]string{"even": "true"}}, []int{0}},
		} {
			same(t, name, g.list(c.filter, dispatcher.Page{}), c.want)
		}
		if n, err := g.dead.Delete(t.Context(), filter{Headers: map[string]string{"number": "3"}}); n != 1 || err != nil {
			t.Errorf("Delete: %d, %v", n, err)
		}
		if n, err := g.dead.Replay(t.Context(), filter{RoutingKey: "key.1"}); n != 2 || err != nil {
			t.Errorf("Replay: %d, %v", n, err)
		}
		same(t, "the rest", g.list(filter{}, dispatcher.Page{}), []int{0, 2, 5})
	})
}

// Anyone who may publish can put any message into a dead letter queue.
func TestHostileDeadLettersAreShownAsFarAsTheyGo(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, g *graveyard) {
		odd := []any{nil, true, int64(-1), int64(1) << 40, 1.5, "", "x", strings.Repeat("[{},", 4000), []byte("failed"), time.Unix(1, 0), []any{"x"},
			map[string]any{"n": int64(1)}, "9999-12-31T23:59:59Z", `[{"n":-9,"at":"0000-01-01T00:00:00Z","ms":9223372036854775807}]`,
			"[" + strings.Repeat("{},", 5000) + "{}]"}
		names := []string{"reason", "error", "attempt", "queue", "routing-key", "died-at", "worker", "log", "losses", "misses", "missed-since", "expires-at"}
		var msgs []broker.Message
		for i, v := range odd {
			h := map[string]any{"mine": v}
			for _, name := range names {
				h["x-dispatcher-"+name] = v
			}
			if _, err := json.Marshal(v); err != nil {
				t.Fatal(err)
			}
			if text, ok := v.(string); ok && len(text) > 1000 {
				h = map[string]any{"x-dispatcher-log": v, "mine": "x"}
			}
			msgs = append(msgs, broker.Message{ID: fmt.Sprint("odd", i), Body: []byte(strings.Repeat("[", i*1000)), Headers: h})
		}
		g.put(g.queue+".dead", msgs...)
		letters, err := g.dead.List(t.Context(), filter{}, dispatcher.Page{})
		if err != nil || len(letters) != len(odd) {
			t.Fatalf("%d letters: %v", len(letters), err)
		}
		for i, l := range letters {
			if l.UUID != fmt.Sprint("odd", i) || l.Attempts < 0 || l.Attempts > 1<<31 || len(l.Log) > 16 || len(l.Headers) != 1 || len(l.Body) != i*1000 {
				t.Errorf("letter %d: %+v", i, l)
			}
			if _, err := l.Task(); !errors.Is(err, dispatcher.ErrMalformed) {
				t.Errorf("Task of letter %d: %v", i, err)
			}
		}
		for _, f := range []filter{{Reason: "failed"}, {Since: time.Now().Add(-time.Hour), Until: time.Now()}, {Name: "x"}} {
			if letters, err := g.dead.List(t.Context(), f, dispatcher.Page{}); err != nil || len(letters) != 0 {
				t.Errorf("%+v: %d letters: %v", f, len(letters), err)
			}
		}
		if n, err := g.dead.ReplayAll(t.Context()); n != len(odd) || err != nil {
			t.Errorf("%d replayed: %v", n, err)
		}
		for i, m := range g.take(g.queue) {
			if _, mine := m.Headers["mine"]; m.ID != fmt.Sprint("odd", i) || !mine || len(m.Headers) > 2 {
				t.Errorf("message %d has id %q and %d headers", i, m.ID, len(m.Headers))
			}
		}
	})
}
