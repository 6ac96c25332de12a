package rabbitmq

import (
	"container/list"
	"context"
	"time"
)

// firstQuota is how many messages with one exchange and key may be unanswered before the first answer. RabbitMQ stops
// reading from a connection when one channel has about 230 messages for a quorum queue that does not answer (32 until
// the channel is blocked, and 200 more of its reader's credit). Then no queue gets any.
const firstQuota = 150

// firstSettleQuota is the same for copies that settle deliveries. They have fewer places in the window.
const firstSettleQuota = reserve / 4

// destination identifies a quota: an exchange and key, separately for publishing and for settling.
type destination struct {
	target
	settle bool
}

// quota bounds the unanswered messages of one destination, so that a queue that does not answer takes neither the whole
// window nor the connection. It grows by one with each answer, and starts again when nothing is in flight. Guarded by
// publisher.mu.
type quota struct {
	to      destination
	allowed int
	most    int
	used    int
	waiting list.List // chan struct{}, closed when it has its place
}

// answering returns the target in whose quota f needs a place. A level answers for the messages of all targets, and is
// a quorum queue.
func (f *flight) answering() target {
	if f.delay == nil {
		return f.to
	}
	return target{exchange: levelName(firstLevel(ticks(time.Until(f.delay.due), f.delay.digits)))}
}

// reserve waits for a place in the quota of a destination and takes it.
func (p *publisher) reserve(ctx context.Context, to destination) (*quota, error) {
	p.mu.Lock()
	q := p.quotas[to]
	if q == nil {
		q = &quota{to: to, allowed: firstQuota, most: window}
		if to.settle {
			q.allowed, q.most = firstSettleQuota, reserve
		}
		p.quotas[to] = q
	}
	if q.used < q.allowed {
		q.used++
		p.mu.Unlock()
		return q, nil
	}
	granted := make(chan struct{})
	turn := q.waiting.PushBack(granted)
	p.mu.Unlock()
	err := await(ctx, p.s.dead, granted)
	if err == nil {
		return q, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-granted: // in the same moment
		p.restore(q, false)
	default:
		q.waiting.Remove(turn)
	}
	return nil, err
}

// restore gives a place back. The caller holds mu.
func (p *publisher) restore(q *quota, answered bool) {
	q.used--
	if answered {
		q.allowed = min(q.allowed+1, q.most)
	}
	for q.used < q.allowed && q.waiting.Len() > 0 {
		q.used++
		close(q.waiting.Remove(q.waiting.Front()).(chan struct{}))
	}
	if q.used == 0 {
		delete(p.quotas, q.to)
	}
}
