package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// settler carries out verdicts, on the goroutines of its callers. It has no lock.
type settler struct {
	cfg    *Config
	phases *phases
	state  *state

	giving      chan struct{} // holds one for each copy that is being given back
	stepAside   func(*Call)   // gives the slot of a call to others before it waits
	suspectMade func()
}

// settle ends a delivery as the verdict says. If the connection is gone, the delivery cannot be settled, and the broker
// delivers it again. settle reports whether the delivery stays instead, to be called: see errStays.
func (s *settler) settle(c *Call, v verdict.Verdict) (stays bool) {
	counters := s.cfg.Counters
	var err error
	switch v.Action {
	case verdict.Ack:
		if err = c.Delivery.Ack(); err == nil {
			counters.Succeeded.Add(1)
		}
	case verdict.Discard:
		if err = c.Delivery.Ack(); err == nil {
			counters.Discarded.Add(1)
			s.cfg.about(c, v.Made.Number).Info(s.cfg.Noun+" discarded", attrsOf(v.Outcome)...)
		}
	case verdict.Release:
		err = s.giveBack(c)
	default:
		v, err = s.forward(c, v)
	}
	if err == nil {
		s.cfg.Shared.running.settled(&c.run) // first: a hook may end this goroutine
		s.tell(c, v)
		return false
	}
	if err == errStays {
		return true
	}
	s.notSettled(c, v, err)
	return false
}

// notSettled counts and logs a delivery that could not be settled.
func (s *settler) notSettled(c *Call, v verdict.Verdict, err error) {
	counters := s.cfg.Counters
	what := "delivery lost before it was settled; the broker delivers the " + s.cfg.Noun + " again"
	switch {
	case errors.Is(err, broker.ErrQueueGone):
		what = "delivery not settled: the " + s.cfg.Noun + " was deleted with its queue"
		counters.Lost.Add(1)
	case errors.Is(err, broker.ErrSettled):
		what = "delivery not settled: it was already settled"
	default:
		counters.Lost.Add(1)
	}
	attrs := []any{"verdict", string(v.Action), "err", logs.Brief(err)}
	if v.Err != nil { // perhaps nothing else reports it
		attrs = append(attrs, "outcome", logText(v.Outcome))
	}
	s.cfg.about(c, v.Made.Number).Warn(what, withStack(v.Outcome, attrs)...)
}

// settleUncalled settles a delivery that is not called, and reports whether the task stays, to be called. The task
// counts as under way until it is settled. Otherwise its copy could come back sooner and end this process, and the
// unsettled original would be a second one.
func (s *settler) settleUncalled(c *Call, v verdict.Verdict) (stays bool) {
	defer func() { // even when a hook ends this goroutine
		if stays {
			return
		}
		s.cfg.Shared.running.end(&c.run)
		if v.Action == verdict.ReturnToSuspects { // it would be found again at once
			c.end(noSuspect)
		} else {
			c.end(oneSuspect)
		}
	}()
	return s.settle(c, v)
}

// givers is how many deliveries are given back as copies at once. A quorum queue of RabbitMQ forgets acks that come one
// by one shortly before their channel is closed, if more than 32 are on their way (3.10.8, measured): the tasks would be
// there twice. An ack follows the confirmation of its copy, so about as many are on their way.
const givers = 8

// giveBack returns a delivery without a charge: its task was not run, or the shutdown interrupted it. A broker that
// cannot tell returned deliveries from lost ones gets a copy, which was never delivered before.
func (s *settler) giveBack(c *Call) error {
	ctx, cancel := context.WithTimeout(s.phases.hard, link.CloseTimeout)
	defer cancel()
	_, err := s.giveBackBefore(ctx, c)
	return err
}

// giveBackBefore is giveBack that waits for the broker until ctx ends. refused is true if it took no copy. A message with
// unreadable headers is returned as it is: its copy would have readable ones, and be run.
func (s *settler) giveBackBefore(ctx context.Context, c *Call) (refused bool, err error) {
	asItIs := c.at.exact || c.Delivery.Unreadable != ""
	refused = !asItIs && s.giveCopy(ctx, c) != nil
	if asItIs || refused {
		err = c.Delivery.Release() // it may be charged, which is better than being held
	}
	if err == nil {
		s.cfg.Counters.Released.Add(1)
	}
	return refused, err
}

// giveCopy writes the copy of a delivery that is given back.
func (s *settler) giveCopy(ctx context.Context, c *Call) error {
	select {
	case s.giving <- struct{}{}:
		defer func() { <-s.giving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	msg := c.again()
	if c.suspect() {
		return c.Delivery.Suspect(ctx, msg)
	}
	return c.Delivery.Retry(ctx, msg, 0)
}

// giveBackAll gives back deliveries that no slot has received, within CloseTimeout. It reports whether the broker took
// all their copies.
func (s *settler) giveBackAll(deliveries []broker.Delivery, at *feed) bool {
	ctx, cancel := context.WithTimeout(s.phases.hard, link.CloseTimeout)
	defer cancel()
	var all sync.WaitGroup
	var bad atomic.Bool
	turns := make(chan struct{}, givers)
	for _, d := range deliveries {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			s.cfg.Counters.Received.Add(1)
			if isLost(&d) {
				s.cfg.Counters.Lost.Add(1)
				s.cfg.Shared.innocents.add(&d)
				return
			}
			c := s.cfg.newCall(d, at)
			refused, err := s.giveBackBefore(ctx, c)
			if err != nil {
				s.cfg.Shared.innocents.add(&d)
				s.notSettled(c, verdict.Verdict{Action: verdict.Release}, err)
			}
			if refused || err != nil {
				bad.Store(true)
			}
		})
	}
	all.Wait()
	return !bad.Load()
}

// tell counts and logs the outcome of a forwarded delivery, and calls the observer.
func (s *settler) tell(c *Call, v verdict.Verdict) {
	switch v.Action {
	case verdict.Ack, verdict.Discard, verdict.Release:
		return
	}
	counters, observer, noun := s.cfg.Counters, &s.cfg.Observer, s.cfg.Noun
	log := s.cfg.about(c, v.Made.Number)
	switch v.Action {
	case verdict.Postpone:
		counters.Postponed.Add(1)
		if c.history.UnknownCount == 0 {
			log.Warn(noun+" postponed", attrsOf(v.Outcome, "retry_in", logs.Rounded(v.Delay))...)
		}
	case verdict.ReturnToSuspects:
		counters.Postponed.Add(1)
		if c.history.UnknownCount == 0 {
			log.Warn(noun+" postponed to the end of the suspects", attrsOf(v.Outcome)...)
		}
	case verdict.ToDeadLetters:
		counters.DeadLettered.Add(1)
		log.Error(noun+" is a dead letter", attrsOf(v.Outcome, "reason", v.Reason)...)
		if observer.DeadLettered != nil {
			observer.DeadLettered(c, v)
		}
	case verdict.RetryLater:
		counters.Retried.Add(1)
		log.Warn("attempt failed", attrsOf(v.Outcome, "retry_in", logs.Rounded(v.Delay))...)
		if observer.Retried != nil {
			observer.Retried(c, v)
		}
	case verdict.MoveToBack:
		counters.Postponed.Add(1)
		log.Warn(noun+" was lost with its worker or connection; moved to the back of the queue", "losses", v.Losses)
	case verdict.MoveToSuspects:
		counters.Suspected.Add(1)
		log.Warn(noun+" was lost with its worker or connection; moved to the suspects to run alone", "losses", v.Losses)
		s.suspectMade()
	}
}

// redeclare declares the worker's queues again if there is a connection.
func (s *settler) redeclare() {
	session, err := s.cfg.Link.Session()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.phases.settling, link.OpenTimeout)
	defer cancel()
	s.cfg.Declarer.DeclareOnce(ctx, session, s.cfg.Parts)
}
