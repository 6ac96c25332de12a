package brokertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// settler replaces methods of the embedded Settler. A nil field leaves its method as it is.
type settler struct {
	broker.Settler
	ack, release        func() error
	retry               func(ctx context.Context, m broker.Message, delay time.Duration) error
	suspect, deadLetter func(ctx context.Context, m broker.Message) error
}

func (s settler) Ack() error {
	if s.ack != nil {
		return s.ack()
	}
	return s.Settler.Ack()
}

func (s settler) Release() error {
	if s.release != nil {
		return s.release()
	}
	return s.Settler.Release()
}

func (s settler) Retry(ctx context.Context, m broker.Message, delay time.Duration) error {
	if s.retry != nil {
		return s.retry(ctx, m, delay)
	}
	return s.Settler.Retry(ctx, m, delay)
}

func (s settler) Suspect(ctx context.Context, m broker.Message) error {
	if s.suspect != nil {
		return s.suspect(ctx, m)
	}
	return s.Settler.Suspect(ctx, m)
}

func (s settler) DeadLetter(ctx context.Context, m broker.Message) error {
	if s.deadLetter != nil {
		return s.deadLetter(ctx, m)
	}
	return s.Settler.DeadLetter(ctx, m)
}

// not returns err, or nil if err Is hidden.
func not(err, hidden error) error {
	if errors.Is(err, hidden) {
		return nil
	}
	return err
}

// publishing makes hooks that change the outcomes that done receives.
func publishing(change func(done func(i int, err error)) func(i int, err error)) func() hooks {
	return func() hooks {
		return hooks{publish: func(s broker.Session, ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
			s.Publish(ctx, msgs, change(done))
		}}
	}
}

// settling makes hooks that change how deliveries are settled.
func settling(change func(s broker.Session, d broker.Delivery) settler) func() hooks {
	return func() hooks {
		return hooks{settler: func(s broker.Session, d broker.Delivery) broker.Settler {
			x := change(s, d)
			x.Settler = d.Settler
			return x
		}}
	}
}

// delaying makes hooks that change messages published with a delay. If change returns refuse, the message is not
// published and done receives err.
func delaying(change func(s broker.Session, m *broker.Message) (refuse bool, err error)) func() hooks {
	return func() hooks {
		return hooks{publish: func(s broker.Session, ctx context.Context, msgs []broker.Message, done func(i int, err error)) {
			var kept []broker.Message
			var index []int
			for i, m := range msgs {
				if time.Until(m.NotBefore) > 0 {
					if refuse, err := change(s, &m); refuse {
						done(i, err)
						continue
					}
				}
				kept, index = append(kept, m), append(index, i)
			}
			// A single call, because the session's Done waits for a running call and not for the next one.
			s.Publish(ctx, kept, func(i int, err error) { done(index[i], err) })
		}}
	}
}

// sendTo publishes m to a queue for a broken settler.
func sendTo(ctx context.Context, s broker.Session, queue string, m broker.Message) (err error) {
	m.Exchange, m.RoutingKey, m.NotBefore = "", queue, time.Time{}
	s.Publish(ctx, []broker.Message{m}, func(_ int, e error) { err = e })
	return err
}

var errBroken = fmt.Errorf("broken on purpose: %w", broker.ErrSessionLost)
