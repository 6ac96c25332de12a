package memory_test

import (
	"context"
	"fmt"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/memory"
)

func ExampleNew() {
	ctx := context.Background()
	s, err := memory.New().Open(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close(ctx)

	if err := s.Declare(ctx, broker.Topology{Queues: []broker.QueueSpec{{Name: "mail"}}}); err != nil {
		fmt.Println(err)
		return
	}
	s.Publish(ctx, []broker.Message{{RoutingKey: "mail", ID: "1", Body: []byte("hello")}}, func(_ int, err error) {
		fmt.Println("outcome:", err)
	})
	c, err := s.Consume(ctx, broker.ConsumeOptions{Queue: "mail", Prefetch: 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := <-c.Deliveries()
	fmt.Printf("%s: %s\n", d.ID, d.Body)
	fmt.Println("ack:", d.Ack())
	// Output:
	// outcome: <nil>
	// 1: hello
	// ack: <nil>
}
