package rabbitmq

import (
	"errors"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Each case has the messages written to a channel, in order, and the reason why RabbitMQ closed it. The outcomes are
// "?" for unconfirmed, "x" for rejected and "." for certainly ignored.
func TestOneMessageIsBlamedForTheEndOfAChannelOrNone(t *testing.T) {
	small, large := &flight{exchange: "a", key: "k", size: 10}, &flight{exchange: "a", key: "k", size: 300}
	other, internal := &flight{exchange: "b", key: "k", size: 20}, &flight{key: "k"}
	topic := &flight{exchange: "a", key: "l"}
	for name, c := range map[string]struct {
		written []*flight
		code    int
		reason  string
		want    string
		is      error
	}{
		"too large":              {[]*flight{small, large, other, large, small}, 406, "PRECONDITION_FAILED - message size 300 is larger than configured max size 100", "?x.x.", broker.ErrTooLarge},
		"too large for all":      {[]*flight{small, large}, 406, "PRECONDITION_FAILED - message size 300 is larger than max size 100", "?x", broker.ErrTooLarge},
		"too large, not ours":    {[]*flight{small, large}, 406, "PRECONDITION_FAILED - message size 301 is larger than configured max size 100", "??", nil},
		"another precondition":   {[]*flight{small, large}, 406, "PRECONDITION_FAILED - fast reply consumer does not exist", "??", nil},
		"missing exchange":       {[]*flight{small, other, small}, 404, "NOT_FOUND - no exchange 'b' in vhost '/'", "?x.", broker.ErrRejected},
		"deleted exchange":       {[]*flight{other, small, other, small}, 404, "NOT_FOUND - no exchange 'b' in vhost '/'", "???.", nil},
		"exchange of other name": {[]*flight{small, other}, 404, "NOT_FOUND - no exchange 'ab' in vhost '/'", "??", nil},
		"no right":               {[]*flight{small, other}, 403, "ACCESS_REFUSED - access to exchange 'a' in vhost '/' refused for user 'u'", "x.", broker.ErrRejected},
		"no right, 4.x":          {[]*flight{small, other}, 403, "ACCESS_REFUSED - write access to exchange 'a' in vhost '/' refused for user 'u'", "x.", broker.ErrRejected},
		"default exchange":       {[]*flight{small, internal}, 403, "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'", "?x", broker.ErrRejected},
		"internal exchange":      {[]*flight{other}, 403, "ACCESS_REFUSED - cannot publish to internal exchange 'b' in vhost '/'", "x", broker.ErrRejected},
		"topic":                  {[]*flight{small, topic, small}, 403, "ACCESS_REFUSED - access to topic 'l' in exchange 'a' in vhost '/' refused for user 'u'", "?x.", broker.ErrRejected},
		"something else":         {[]*flight{small, other}, 541, "INTERNAL_ERROR", "??", nil},
	} {
		p := &publisher{exchanges: make(map[string]*scouting)}
		v := p.judge(&amqp.Error{Code: c.code, Reason: c.reason, Server: true}, c.written)
		got := ""
		for i, f := range c.written {
			switch err := v.of(i, f); {
			case err == nil:
				got += "."
			case errors.Is(err, broker.ErrRejected) && errors.Is(err, c.is):
				got += "x"
			case errors.Is(err, broker.ErrUnconfirmed) && errors.Is(err, broker.ErrProtocol):
				got += "?"
			default:
				t.Errorf("%s: message %d: %v", name, i, err)
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
