package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/deadletter"
	"github.com/seed-416683c9/dispatcher/internal/publish"
	"github.com/seed-416683c9/dispatcher/internal/record"
	"github.com/seed-416683c9/dispatcher/internal/text"
)

// Replay runs the dead letters that match the filter again, oldest first, and returns their number. The zero filter is
// an error; [DeadLetters.ReplayAll] replays all. Each letter goes back to its queue, and to no other queue. It keeps
// its uuid, body, routing key and headers; its attempts and its expiry are forgotten. A letter that dies again
// meanwhile is not replayed a second time by the same call.
//
// An undeliverable letter goes to the queue or the routing key that it was meant for. If it was published to another
// exchange than this server's, it stays and is an error.
//
// A letter is removed after its task is confirmed in its queue. So none is lost, even if ctx, the connection or the
// process ends in between.
//
// If the error Is [ErrUnconfirmed], some tasks may be both in their queue and among the dead letters. They would run
// twice if they were replayed again; the uuid shows it. After any other error, the letters that were not counted are
// still dead letters. Such an error Is [ErrUnroutable] if the queue does not exist, [ErrRejected], [ErrNotSent], or one
// that all methods return. One refused letter does not hold up the others.
func (d *DeadLetters) Replay(ctx context.Context, filter DeadLetterFilter) (int, error) {
	if filter.isZero() {
		return 0, d.wrap("replay", errors.New("the filter is empty; use ReplayAll to replay all dead letters"))
	}
	return d.replay(ctx, filter)
}

// ReplayAll replays all dead letters, as Replay does.
func (d *DeadLetters) ReplayAll(ctx context.Context) (int, error) {
	return d.replay(ctx, DeadLetterFilter{})
}

func (d *DeadLetters) replay(ctx context.Context, filter DeadLetterFilter) (int, error) {
	r := replay{DeadLetters: d, filter: filter, began: time.Now()}
	err := r.run(ctx)
	d.server.replayed.Add(int64(r.done))
	if r.done > 0 {
		d.server.log.Info("dead letters replayed", "queue", d.queue, "count", r.done)
	}
	return r.done, d.wrap("replay", r.explain(err))
}

// replay is one call of Replay.
type replay struct {
	*DeadLetters
	filter DeadLetterFilter
	began  time.Time

	done     int   // confirmed in their queue
	doubtful int   // not counted in done: perhaps in their queue, and still dead letters
	unacked  bool  // some of those in done may still be dead letters
	refused  int   // certainly not replayed
	refusal  error // why the first of them was refused
}

func (r *replay) run(ctx context.Context) error {
	s, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer s.Release(ctx)
	for {
		found, err := s.Next(ctx, deadletter.MaxChunk)
		if err == nil && len(found) == 0 {
			err = s.Finish(ctx, r.done)
			r.unacked = err != nil
			return err
		}
		if err == nil {
			err = r.chunk(ctx, s, found)
		}
		if err != nil {
			r.unacked = r.done > 0 && (errors.Is(err, broker.ErrSessionLost) || errors.Is(err, broker.ErrDeliveryLost))
			return err
		}
	}
}

// chunk replays the letters that match the filter and holds the others. An error ends the replay.
func (r *replay) chunk(ctx context.Context, s *deadletter.Scan, found []broker.Delivery) error {
	var letters []broker.Delivery
	var msgs []broker.Message
	var full error // the latest says how many are held
	hold := func(letter broker.Delivery) {
		if err := s.Hold(letter); err != nil {
			full = err
		}
	}
	for _, letter := range found {
		if !r.wants(&letter.Message) {
			hold(letter)
			continue
		}
		m, err := r.message(&letter.Message)
		if err != nil {
			r.refuse(err)
			hold(letter)
			continue
		}
		letters, msgs = append(letters, letter), append(msgs, m)
	}
	if len(msgs) == 0 {
		return full
	}

	sending, cancel := r.server.cfg.bound(ctx)
	defer cancel()
	receipts := publish.NewReceipts(len(msgs))
	s.Session.Publish(sending, msgs, receipts.Done)
	var end error
	for i, err := range receipts.Wait(sending) {
		switch {
		case err == nil:
			r.done++
			if err = letters[i].Ack(); err != nil { // its session is dead, so it is still a dead letter
				end = err
			}
			continue
		case errors.Is(err, ErrNotSent):
			end = err
		case errors.Is(err, ErrRejected):
			switch {
			case !errors.Is(err, ErrUnroutable):
			case r.undeliverable():
				err = fmt.Errorf("routing key %q: %w", text.Excerpt(msgs[i].RoutingKey), advised(err))
			default:
				err = fmt.Errorf("%w: declare the queue with ServerConfig.InitQueues or NewWorker first", err)
				end = err // the same for all
			}
			r.refuse(err)
		default:
			r.doubtful++
			end = err
		}
		hold(letters[i])
	}
	if end != nil {
		return end
	}
	return full
}

// wants reports whether a letter is to be replayed. A letter that died since the replay began has just been replayed,
// by this call or a concurrent one. A time of death in the future comes from a wrong clock and is ignored.
func (r *replay) wants(m *broker.Message) bool {
	who := r.identify(m)
	return r.filter.fits(&who) && !(who.diedAt.After(r.began) && !who.diedAt.After(time.Now()))
}

// message returns the task as it is sent again.
func (r *replay) message(letter *broker.Message) (broker.Message, error) {
	m := letter.Forward()
	if r.undeliverable() {
		// RabbitMQ may not have that exchange; this server's own is declared.
		if m.Exchange != "" && m.Exchange != r.server.cfg.Exchange {
			return m, fmt.Errorf("task %q (%q) was published to exchange %q, and this server's is %q: %w",
				text.Excerpt(m.Type), text.Excerpt(m.ID), text.Excerpt(m.Exchange), r.server.cfg.Exchange, ErrRejected)
		}
	} else {
		// Bypass the exchange, or the task would run in every queue that is bound to its key.
		m.Exchange, m.RoutingKey = "", r.queue
	}
	for name := range m.Headers {
		if record.IsOwn(name) && name != record.HeaderRoutingKey && !record.IsForPeople(name) {
			delete(m.Headers, name)
		}
	}
	if m.ID == "" {
		if m.ID = r.identify(letter).uuid; m.ID == "" || len(m.ID) > record.MaxName {
			m.ID = newUUID()
		}
	}
	return m, nil
}

func (r *replay) refuse(err error) {
	if r.refused++; r.refusal == nil {
		r.refusal = err
	}
}

// explain adds how far the replay came. It reports the error that ended the replay, or else the first refusal.
func (r *replay) explain(err error) error {
	if err == nil {
		err = r.refusal
	}
	if err == nil || r.done+r.refused+r.doubtful == 0 {
		return err
	}
	text := fmt.Sprintf("%d replayed", r.done)
	if r.refused > 0 {
		text += fmt.Sprintf(", %d refused and kept", r.refused)
	}
	if r.doubtful > 0 {
		text += fmt.Sprintf(", %d possibly replayed and still kept", r.doubtful)
	}
	if r.unacked {
		text += ", some of the replayed ones possibly still kept"
	}
	if r.unacked || r.doubtful > 0 {
		// The outcome in the error that ended the replay holds for its own letters only.
		return fmt.Errorf("%s: %w: %w", text, ErrUnconfirmed, opaque{err})
	}
	return fmt.Errorf("%s: %w", text, err)
}

// opaque hides the outcomes in an error, so that a publish or a replay has exactly one.
type opaque struct{ err error }

func (o opaque) Error() string { return o.err.Error() }

func (o opaque) Is(target error) bool {
	switch target {
	case ErrNotSent, ErrRejected, ErrUnroutable, ErrTooLarge, ErrUnconfirmed:
		return false
	}
	return errors.Is(o.err, target)
}
