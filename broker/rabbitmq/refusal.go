package rabbitmq

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// errCut is the outcome of the orphans on a pipe that was given up.
var errCut = fmt.Errorf("%w: no answer, and too many other messages wait for one", broker.ErrUnconfirmed)

// errOrphan is the outcome of an orphan that would have to be written again.
var errOrphan = fmt.Errorf(
	"%w: the broker closed the publish channel before it came to it, and nobody waits for it", broker.ErrNotSent)

// bury ends a pipe. It reports the outcome to each flight that has one, and returns the flights to be written again.
// The caller holds the port's turn.
func (pt *port) bury(pp *pipe, e *amqp.Error) (again []*flight) {
	p := pt.p
	p.mu.Lock()
	pp.ended = true
	pt.forget(pp)
	if i := slices.Index(p.pipes, pp); i >= 0 {
		p.pipes = slices.Delete(p.pipes, i, i+1)
	}
	if pt.current == pp {
		pt.current = nil
	}
	if e != nil {
		pt.reopen = pp.opened.Add(reopenPause)
	}
	pp.readReturns()
	var open, written []*flight
	for _, f := range pp.flights.all() {
		if f.acked() { // hear has not come to it
			p.passed(f)
			p.end(f, f.confirmed())
			continue
		}
		pp.remove(f)
		open = append(open, f)
		if f.written { // unwritten flights come after it
			written = append(written, f)
		}
	}
	v := p.judge(e, written)
	var levels []*run
	for i, f := range open {
		gone := e != nil && f.missesLevel(e)
		if gone {
			levels = append(levels, f.delay.levels)
		}
		switch err := v.of(i, f); {
		case err != nil:
			p.end(f, err)
		case f.orphan:
			p.end(f, errOrphan)
		case gone: // it would end the next pipe: see rewrite
			p.end(f, refused(writeExchange, e))
		default:
			f.written = false
			again = append(again, f)
		}
	}
	p.unlock()
	for _, r := range levels {
		p.s.delays.memory.levels.forget(r)
	}
	return again
}

// missesLevel reports whether a pipe ended because the exchange of a level does not exist, and f was going to a level.
func (f *flight) missesLevel(e *amqp.Error) bool {
	return f.delay != nil && f.delay.held &&
		e.Code == amqp.NotFound && strings.Contains(e.Reason, "no exchange '"+delayPrefix)
}

// blame says what the end of a pipe means for the flights written to it, in the order of writing.
type blame struct {
	doubtful int   // number of flights, from the first, that may or may not be in their queues
	doubt    error // their outcome
	refused  int   // index of the refused one, at least doubtful; -1 = not known
	refusal  error // its outcome
	limit    int   // larger bodies have the same outcome; 0 = no limit is known
}

// of returns the outcome of a flight. nil means that the broker has certainly ignored it.
func (v *blame) of(i int, f *flight) error {
	switch {
	case i < v.doubtful:
		return v.doubt
	case v.refusal != nil && (i == v.refused || v.limit > 0 && f.size > v.limit):
		return v.refusal
	}
	return nil
}

var tooLarge = regexp.MustCompile(`message size (\d+) is larger than (?:configured )?max size (\d+)`)

// judge finds out which of the written flights made RabbitMQ close their pipe. The caller holds mu.
//
//   - RabbitMQ checks a size before all else, against the limit at the time when the channel was opened. So the first
//     flight of that size was refused.
//   - Of several messages to an exchange, the first may be in its queues if the exchange was deleted after it. So only
//     a single one (see scouting) was certainly refused. Several are in doubt, with everything written before the last
//     of them.
func (p *publisher) judge(e *amqp.Error, written []*flight) blame {
	if e == nil {
		return blame{doubtful: len(written), doubt: errCut}
	}
	words := reply(e)
	v := blame{
		doubtful: len(written),
		refused:  -1,
		doubt: fmt.Errorf("%w: the broker closed the publish channel: %s: %w",
			broker.ErrUnconfirmed, words, broker.ErrProtocol),
	}
	switch e.Code {
	case amqp.PreconditionFailed:
		m := tooLarge.FindStringSubmatch(e.Reason)
		if m == nil {
			break
		}
		size, _ := strconv.Atoi(m[1])
		limit, _ := strconv.Atoi(m[2])
		if i := slices.IndexFunc(written, func(f *flight) bool { return f.size == size }); i >= 0 {
			p.maxSize.Store(int64(limit))
			p.fits = limit
			v.doubtful, v.refused = i, i
			v.refusal = fmt.Errorf("%s: %w", words, broker.ErrTooLarge)
			v.limit = limit
		}
	case amqp.NotFound, amqp.AccessRefused:
		first, last := -1, -1
		for i, f := range written {
			if f.named(e.Reason) {
				if first < 0 {
					first = i
				}
				last = i
			}
		}
		if first < 0 {
			break
		}
		refusal := refused(writeExchange, e)
		if !strings.Contains(e.Reason, aboutTopic) {
			*p.exchange(written[first].exchange) = scouting{refused: refusal, until: time.Now().Add(reopenPause)}
		}
		v.doubtful = last + 1
		if first == last {
			v.doubtful, v.refused, v.refusal = first, first, refusal
		}
	}
	return v
}

// aboutTopic appears in the reason of a refusal that does not apply to all keys of an exchange.
const aboutTopic = "access to topic '"

// named reports whether the reason of a refusal names the flight's exchange and, if it is about a topic, its key.
// RabbitMQ cuts a reason after 255 bytes, so a very long name is not found and no flight is blamed.
func (f *flight) named(reason string) bool {
	exchange := f.exchange
	if exchange == "" {
		exchange = "amq.default"
	}
	if !strings.Contains(reason, "exchange '"+exchange+"' in vhost") {
		return false
	}
	return !strings.Contains(reason, aboutTopic) || strings.Contains(reason, aboutTopic+f.key+"' in")
}

// scouting is what is known of an exchange. The first message to it goes alone, on a channel of its own, and so does
// the largest body so far. A refusal then affects no other message, and it is certain which one was refused.
type scouting struct {
	passed  bool      // a message got through, and none was refused since
	refused error     // nil = it was not refused recently
	until   time.Time // until then messages are refused without being sent, since each refusal costs a channel
}

// exchange returns what is known of an exchange. The caller holds mu.
func (p *publisher) exchange(name string) *scouting {
	x := p.exchanges[name]
	if x == nil {
		if len(p.exchanges) >= 1000 { // then some go alone again
			clear(p.exchanges)
		}
		x = &scouting{}
		p.exchanges[name] = x
	}
	return x
}
