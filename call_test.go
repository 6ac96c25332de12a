package dispatcher

import (
	"context"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A call may wait for hours until its verdict is written. Meanwhile nobody needs its arguments.
func TestACallKeepsNoArgumentsAfterItsFunction(t *testing.T) {
	t.Parallel()
	plans, err := (&Server{}).planTasks(&WorkerConfig{}, map[string]TaskConfig{"sum": {Function: func(ns []int) {}}})
	if err != nil {
		t.Fatal(err)
	}
	h := &taskHandler{tasks: plans}
	c := h.NewCall()
	c.Delivery = broker.Delivery{Message: broker.Message{Body: []byte(`{"name":"sum","args":[{"type":"[]int","value":[1,2]}]}`)}}
	if err := h.Identify(c); err != nil {
		t.Fatal(err)
	}
	if err := h.Find(c); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Bind(c); err != nil {
		t.Fatal(err)
	}
	if err := h.Run(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if bound := c.Payload.(*taskCall).bound; bound.in != nil {
		t.Errorf("it keeps %v", bound.in)
	}
}
