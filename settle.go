package dispatcher

import (
	"context"
	"errors"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/contain"
	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/logs"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// This file carries out verdicts.

// settle ends a delivery as the verdict says. If the connection is gone, the delivery cannot be settled, and the broker
// delivers it again. settle reports whether the delivery stays instead, to be called: see errStays.
func (s *shift) settle(c *call, v verdict.Verdict) (stays bool) {
	stats := &s.w.server.stats
	var err error
	switch v.Action {
	case verdict.Ack:
		if err = c.delivery.Ack(); err == nil {
			stats.succeeded.Add(1)
		}
	case verdict.Discard:
		if err = c.delivery.Ack(); err == nil {
			stats.discarded.Add(1)
			s.about(c, v.Made.Number).Info("task discarded", attrsOf(v.Outcome, logText(v))...)
		}
	case verdict.Release:
		err = s.giveBack(c)
	default:
		v, err = s.forward(c, v)
	}
	if err == nil {
		s.w.server.running.settled(&c.run) // first: a hook may end this goroutine
		s.tellForwarded(c, v)
		return false
	}
	if err == errStays {
		return true
	}
	what := "delivery lost before it was settled; the broker delivers the task again"
	switch {
	case errors.Is(err, broker.ErrQueueGone):
		what = "delivery not settled: the task is gone with its queue"
		stats.lost.Add(1)
	case errors.Is(err, broker.ErrSettled):
		what = "delivery not settled: it was settled before"
	default:
		stats.lost.Add(1)
	}
	attrs := []any{"verdict", string(v.Action), "err", logs.Brief(err)}
	if v.Err != nil { // perhaps nothing else reports it
		attrs = append(attrs, "outcome", logText(v))
	}
	s.about(c, v.Made.Number).Warn(what, withStack(v.Outcome, attrs)...)
	return false
}

// giveBack returns a delivery without a charge: its task was not run, or the shutdown interrupted it. A broker that
// cannot tell returned deliveries from lost ones gets a copy, which was never delivered before.
func (s *shift) giveBack(c *call) (err error) {
	defer func() {
		if err == nil {
			s.w.server.stats.released.Add(1)
		}
	}()
	if c.at.exact {
		return c.delivery.Release()
	}
	ctx, cancel := context.WithTimeout(s.hard, link.CloseTimeout)
	defer cancel()
	if msg := c.copy(); c.suspect() {
		err = c.delivery.Suspect(ctx, msg)
	} else {
		err = c.delivery.Retry(ctx, msg, 0)
	}
	if err == nil {
		return nil
	}
	return c.delivery.Release() // it may be charged, which is better than being held
}

// tellForwarded counts and logs the outcome of a forwarded delivery, and calls the hooks.
func (s *shift) tellForwarded(c *call, v verdict.Verdict) {
	switch v.Action {
	case verdict.Ack, verdict.Discard, verdict.Release:
		return
	}
	stats, hooks, worker := &s.w.server.stats, &s.w.server.cfg.Hooks, s.w.cfg.Name
	log := s.about(c, v.Made.Number)
	switch v.Action {
	case verdict.Postpone:
		stats.postponed.Add(1)
		if c.history.Misses == 0 {
			log.Warn("task put off", attrsOf(v.Outcome, logText(v), "retry_in", logs.Rounded(v.Delay))...)
		}
	case verdict.PutOff:
		stats.postponed.Add(1)
		if c.history.Misses == 0 {
			log.Warn("task put off to the end of the suspects", attrsOf(v.Outcome, logText(v))...)
		}
	case verdict.ToDeadLetters:
		stats.deadLettered.Add(1)
		log.Error("task is a dead letter", attrsOf(v.Outcome, logText(v), "reason", v.Reason)...)
		if hooks.DeadLettered != nil {
			contain.Call(s.w.log, hooks.DeadLettered, DeadLetterEvent{*c.info(worker), v.Reason, v.Err})
		}
	case verdict.RetryLater:
		stats.retried.Add(1)
		log.Warn("attempt failed", attrsOf(v.Outcome, logText(v), "retry_in", logs.Rounded(v.Delay))...)
		if hooks.Retried != nil {
			contain.Call(s.w.log, hooks.Retried, RetryEvent{*c.info(worker), v.Delay, v.Err})
		}
	case verdict.ToBack:
		stats.postponed.Add(1)
		log.Warn("task was lost with its worker or connection; moved to the back of the queue", "losses", v.Losses)
	case verdict.ToSuspects:
		stats.suspected.Add(1)
		log.Warn("task was lost with its worker or connection; it runs alone now", "losses", v.Losses)
		s.suspectMade()
	}
}
