package rabbitmq

import (
	"errors"
	"fmt"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker"
)

// maxName is the maximum length of a short string of AMQP, which is stored in one byte. The client ends the connection
// over a longer one.
const maxName = 255

// RabbitMQ adds headers of its own to a message: x-delivery-count, x-death with its related headers, and those of its
// interceptors. They must not make a message unreadable on its way.
const (
	brokerEntries = 16
	brokerRoom    = 32 // 1/32 of a frame, 4 KiB of 128 KiB, stays free
)

func checkName(what, name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%s is %d bytes long, the maximum is %d: %w", what, len(name), maxName, broker.ErrRejected)
	}
	return nil
}

// encode checks a message and converts it to the form that the client writes. As far as possible it refuses everything
// that would make the client or the broker end the channel, since everything in flight there would fail too.
func encode(m *broker.Message, frameSize int) (amqp.Publishing, error) {
	if m.ID == "" {
		return amqp.Publishing{}, fmt.Errorf("empty message ID: %w", broker.ErrRejected)
	}
	size := 64 // more than the fixed parts of the frame
	for _, f := range [...]struct{ what, name string }{
		{"exchange", m.Exchange},
		{"routing key", m.RoutingKey},
		{"message ID", m.ID},
		{"type", m.Type},
		{"content type", m.ContentType},
		{"content encoding", m.ContentEncoding},
		{"app ID", m.AppID},
		{"correlation ID", m.CorrelationID},
		{"reply-to", m.ReplyTo},
	} {
		if err := checkName(f.what, f.name); err != nil {
			return amqp.Publishing{}, err
		}
		size += len(f.name) + 1
	}
	headers, n, err := encodeTable(m.Headers, 0)
	if err != nil {
		return amqp.Publishing{}, fmt.Errorf("%w: %w", err, broker.ErrRejected)
	}
	if len(headers) > maxFieldEntries-brokerEntries {
		return amqp.Publishing{}, fmt.Errorf("%d headers, the maximum is %d: %w",
			len(headers), maxFieldEntries-brokerEntries, broker.ErrHeadersTooLarge)
	}
	// Properties and headers share one frame, which cannot be split as the body can.
	limit := frameSize - frameSize/brokerRoom
	if size += n; frameSize > 0 && size > limit {
		return amqp.Publishing{}, fmt.Errorf("headers and properties have %d bytes, the maximum is %d: %w",
			size, limit, broker.ErrHeadersTooLarge)
	}
	return amqp.Publishing{
		DeliveryMode:    amqp.Persistent,
		MessageId:       m.ID,
		Type:            m.Type,
		ContentType:     m.ContentType,
		ContentEncoding: m.ContentEncoding,
		AppId:           m.AppID,
		CorrelationId:   m.CorrelationID,
		ReplyTo:         m.ReplyTo,
		Priority:        m.Priority, // the client leaves out 0
		Timestamp:       m.Timestamp,
		Headers:         headers,
		Body:            m.Body,
	}, nil
}

// encodeTable returns a copy of headers with the client's types, and its size on the wire. depth is the depth of the
// table; the headers themselves have 0.
func encodeTable(headers map[string]any, depth int) (amqp.Table, int, error) {
	if err := checkShape(len(headers), depth); err != nil {
		return nil, 0, err
	}
	size := 4
	if len(headers) == 0 {
		return nil, size, nil
	}
	table := make(amqp.Table, len(headers))
	for name, v := range headers {
		if err := checkName("header name", name); err != nil {
			return nil, 0, err
		}
		encoded, n, err := encodeValue(v, depth)
		if err != nil {
			return nil, 0, fmt.Errorf("header %q: %w", name, err)
		}
		table[name] = encoded
		size += 1 + len(name) + n
	}
	return table, size, nil
}

// checkShape refuses a table or array that RabbitMQ accepts but a receiver with this client cannot read.
func checkShape(entries, depth int) error {
	if depth > maxFieldDepth {
		return fmt.Errorf("nested deeper than %d: %w", maxFieldDepth, broker.ErrHeadersTooLarge)
	}
	if entries > maxFieldEntries {
		return fmt.Errorf("%d entries, the maximum is %d: %w", entries, maxFieldEntries, broker.ErrHeadersTooLarge)
	}
	return nil
}

// checkFloat refuses a number that RabbitMQ cannot read. RabbitMQ ends the connection over one, with 541 INTERNAL_ERROR
// (3.10.8).
func checkFloat(f float64) error {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Errorf("%v cannot be sent", f)
	}
	return nil
}

// encodeValue converts a header value to one that the client can write, and returns its size on the wire. Besides the
// types that the contract allows it accepts every type that a received message may hold, so that a message with them
// can be retried.
func encodeValue(v any, depth int) (any, int, error) {
	switch v := v.(type) {
	case nil:
		return nil, 1, nil
	case bool, int8, uint8:
		return v, 2, nil
	case int16, uint16:
		return v, 3, nil
	case int32, uint32:
		return v, 5, nil
	case float32:
		return v, 5, checkFloat(float64(v))
	case float64:
		return v, 9, checkFloat(v)
	case int64, time.Time:
		return v, 9, nil
	case amqp.Decimal:
		return v, 6, nil
	case int: // the client would cut it to 32 bits
		return int64(v), 9, nil
	case uint:
		return encodeValue(uint64(v), depth)
	case uint64:
		if v > math.MaxInt64 {
			return nil, 0, fmt.Errorf("%d does not fit in an int64", v)
		}
		return int64(v), 9, nil
	case string:
		return v, 5 + len(v), nil
	case []byte:
		return v, 5 + len(v), nil
	case []any:
		if err := checkShape(len(v), depth+1); err != nil {
			return nil, 0, err
		}
		list, size := make([]any, len(v)), 5
		for i, e := range v {
			encoded, n, err := encodeValue(e, depth+1)
			if err != nil {
				return nil, 0, fmt.Errorf("element %d: %w", i, err)
			}
			list[i], size = encoded, size+n
		}
		return list, size, nil
	case map[string]any:
		table, n, err := encodeTable(v, depth+1)
		if table == nil && err == nil {
			table = amqp.Table{}
		}
		return table, 1 + n, err
	case amqp.Table:
		return encodeValue(map[string]any(v), depth)
	}
	return nil, 0, errors.New("a value of type " + fmt.Sprintf("%T", v) + " cannot be sent")
}

// decode converts a delivery of the client to a message. It leaves header values of types that the contract does not
// know as they are.
func decode(d *amqp.Delivery) broker.Message {
	m := broker.Message{
		Exchange:        d.Exchange,
		RoutingKey:      d.RoutingKey,
		ID:              d.MessageId,
		Type:            d.Type,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		AppID:           d.AppId,
		CorrelationID:   d.CorrelationId,
		ReplyTo:         d.ReplyTo,
		Priority:        d.Priority,
		Timestamp:       d.Timestamp,
		Expiration:      d.Expiration,
		UserID:          d.UserId,
		Headers:         decodeTable(d.Headers),
		Body:            d.Body,
	}
	arrived(&m)
	return m
}

// decodeTable changes a table in place: nobody else uses it.
func decodeTable(t amqp.Table) map[string]any {
	for name, v := range t {
		t[name] = decodeValue(v)
	}
	return t
}

func decodeValue(v any) any {
	switch v := v.(type) {
	case time.Time: // the client has set the zone of this machine
		return v.UTC()
	case amqp.Table:
		return decodeTable(v)
	case []any:
		for i := range v {
			v[i] = decodeValue(v[i])
		}
	}
	return v
}
