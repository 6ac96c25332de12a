package bolt

import (
	"bytes"
	"context"

	"github.com/seed-416683c9/dispatcher"
)

// Waiting returns the entries of a routing key, oldest first.
func (o *Outbox) Waiting(ctx context.Context, routingKey string) (all []dispatcher.OutboxEntry, err error) {
	prefix := keyPrefix(routingKey)
	err = o.view(ctx, func(t *table) error {
		c := t.waiting.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			e, err := decodeEntry(k, v)
			if err != nil {
				return err
			}
			all = append(all, e)
		}
		return nil
	})
	return all, err
}
