package systemtest_test

import (
	"math"
	"reflect"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// These programs use the calls, types and fields of github.com/gofort/dispatcher in the order in which its README and
// its two examples use them. They compile and work with only the import path changed. The text is our own. The
// originals write Queue and TaskArgument without keys. house_test.go in the root checks that form, because go vet
// allows it only in the types' own package.

// senderProgram is gofort/dispatcher's sender. It starts a server with a queue, then publishes one task by value and
// one by pointer.
func senderProgram(t *testing.T, url, name string, log dispatcher.Log) (sent []string) {
	cfg := dispatcher.ServerConfig{
		AMQPConnectionString:        url,
		ReconnectionRetries:         25,
		ReconnectionIntervalSeconds: 5,
		TLSConfig:                   nil,
		SecureConnection:            false,
		DebugMode:                   true,
		InitQueues: []dispatcher.Queue{
			{Name: name, BindingKeys: []string{name + ".key_1", name + ".key_2"}},
		},
		Exchange:          name,
		DefaultRoutingKey: name + ".key_1",
		Logger:            log,
	}
	server, connectionBroken, err := dispatcher.NewServer(&cfg)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer server.Close()
	select {
	case <-connectionBroken:
		t.Error("the connection broke at once")
	default:
	}
	task := dispatcher.Task{
		Name: "task_1",
		Args: []dispatcher.TaskArgument{{Type: "string", Value: "by the default key"}, {Type: "int", Value: 7}},
	}
	if err := server.Publish(&task); err != nil {
		t.Error(err)
	}
	other := &dispatcher.Task{
		UUID:       "an-id-of-its-own",
		Name:       "task_1",
		RoutingKey: name + ".key_2",
		Args:       []dispatcher.TaskArgument{{Type: "string", Value: "by another key"}, {Type: "int", Value: 8}},
		Headers:    map[string]interface{}{"trace": "t-1"},
	}
	if err := server.Publish(other); err != nil {
		t.Error(err)
	}
	if task.UUID == "" || task.RoutingKey != cfg.DefaultRoutingKey || other.UUID != "an-id-of-its-own" {
		t.Errorf("after Publish, the caller's tasks are %+v, %+v", task, *other)
	}
	return []string{task.UUID, other.UUID}
}

// workerProgram is gofort/dispatcher's worker. It runs tasks by name until stop is closed. One task takes its uuid.
func workerProgram(t *testing.T, url, name string, log dispatcher.Log, task1 interface{}, stop <-chan struct{}) {
	cfg := dispatcher.ServerConfig{
		AMQPConnectionString:       url,
		ReconnectionRetriesForever: true,
		Exchange:                   name,
		DefaultRoutingKey:          name + ".key_1",
		Logger:                     log,
	}
	server, connectionBroken, err := dispatcher.NewServer(&cfg)
	if err != nil {
		t.Error(err)
		return
	}
	workercfg := dispatcher.WorkerConfig{
		Limit:       5,
		Queue:       name,
		BindingKeys: []string{name + ".key_1"},
		Name:        "worker_1",
	}
	tasks := make(map[string]dispatcher.TaskConfig)
	tasks["task_1"] = dispatcher.TaskConfig{
		TimeoutSeconds:     60,
		Function:           task1,
		TaskUUIDAsFirstArg: true,
	}
	worker, err := server.NewWorker(&workercfg, tasks)
	if err != nil {
		t.Error(err)
		return
	}
	if err := worker.Start(server); err != nil {
		t.Error(err)
		return
	}
	if same, err := server.GetWorkerByName("worker_1"); err != nil || same != worker {
		t.Errorf("GetWorkerByName returned the wrong worker or an error: %v, %v", same, err)
	}
	select {
	case <-stop:
	case <-connectionBroken:
		t.Error("the connection broke")
	}
	worker.Close()
	server.Close()
}

func TestCompatProgramsOfGofortDispatcherRun(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	type call struct {
		uuid, text string
		n          int
	}
	calls, stop, stopped := make(chan call, 2), make(chan struct{}), make(chan struct{})
	url := r.through(r.proxy.Addr())
	go func() {
		defer close(stopped)
		workerProgram(t, url, r.name, r.log, func(uuid string, text string, n int) { calls <- call{uuid, text, n} }, stop)
	}()
	sent := senderProgram(t, url, r.name, r.log)
	if len(sent) != 2 {
		t.FailNow()
	}
	want := map[string]call{sent[0]: {sent[0], "by the default key", 7}, sent[1]: {sent[1], "by another key", 8}}
	for range 2 {
		if got := wait(t, calls, "call"); got != want[got.uuid] {
			t.Errorf("got %+v", got)
		}
	}
	close(stop)
	wait(t, stopped, "end of the worker")
	if ready, consumers := r.count(r.name); ready != 0 || consumers != 0 {
		t.Errorf("%d messages and %d consumers left", ready, consumers)
	}
}

// fourteen has an argument of each type that gofort/dispatcher knows, as it sent them.
var fourteen = []dispatcher.TaskArgument{
	{Type: "bool", Value: true},
	{Type: "string", Value: "ßtring <&>"},
	{Type: "int", Value: math.MinInt},
	{Type: "int8", Value: int8(math.MinInt8)},
	{Type: "int16", Value: int16(math.MinInt16)},
	{Type: "int32", Value: int32(math.MinInt32)},
	{Type: "int64", Value: int64(math.MinInt64)},
	{Type: "uint", Value: uint(math.MaxUint)},
	{Type: "uint8", Value: uint8(math.MaxUint8)},
	{Type: "uint16", Value: uint16(math.MaxUint16)},
	{Type: "uint32", Value: uint32(math.MaxUint32)},
	{Type: "uint64", Value: uint64(math.MaxUint64)},
	{Type: "float32", Value: float32(1.5)},
	{Type: "float64", Value: math.MaxFloat64},
}

func TestCompatAllFourteenTypesArrive(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan []any, 1)
	r.worker(tasks{"all": {TaskUUIDAsFirstArg: true, Function: func(uuid string, b bool, s string, i int, i8 int8, i16 int16, i32 int32, i64 int64,
		u uint, u8 uint8, u16 uint16, u32 uint32, u64 uint64, f32 float32, f64 float64) {
		got <- []any{uuid, b, s, i, i8, i16, i32, i64, u, u8, u16, u32, u64, f32, f64}
	}}})
	task := dispatcher.Task{Name: "all", Args: fourteen}
	if err := r.server.Publish(&task); err != nil {
		t.Fatal(err)
	}
	want := []any{task.UUID}
	for _, arg := range fourteen {
		want = append(want, arg.Value)
	}
	if got := wait(t, got, "call"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// The library's messages have the bytes that gofort/dispatcher's workers read, in the queues that it declares.
func TestCompatWireBytes(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	r.serve(r.ownQueue)
	for body, task := range map[string]*dispatcher.Task{
		`{"uuid":"u-1","name":"task_1","args":[{"type":"string","value":"a\u003cb\u003e\u0026"},{"type":"int64","value":9007199254740993}]}`: {
			UUID: "u-1", Name: "task_1", Args: []dispatcher.TaskArgument{{Type: "string", Value: "a<b>&"}, {Type: "int64", Value: int64(9007199254740993)}},
			Headers: map[string]interface{}{"trace": "t-1", "n": int64(math.MaxInt64), "ok": true},
		},
		`{"uuid":"u-2","name":"tick","args":null}`: {UUID: "u-2", Name: "tick"},
		`{"uuid":"u-3","name":"tick","args":[]}`:   {UUID: "u-3", Name: "tick", Args: []dispatcher.TaskArgument{}},
		`{"uuid":"u-4","name":"n","args":[{"type":"float64","value":1e+21},{"type":"float32","value":0.1},{"type":"bool","value":false}]}`: {
			UUID: "u-4", Name: "n", Args: []dispatcher.TaskArgument{{Type: "float64", Value: 1e21}, {Type: "float32", Value: float32(0.1)}, {Type: "bool", Value: false}},
		},
	} {
		headers := amqp.Table(task.Headers)
		if err := r.server.Publish(task); err != nil {
			t.Fatal(err)
		}
		d := r.take(r.name, 1)[0]
		if string(d.Body) != body {
			t.Errorf("body\n got %s\nwant %s", d.Body, body)
		}
		if d.ContentType != "application/json" || d.DeliveryMode != amqp.Persistent {
			t.Errorf("content type %q, delivery mode %d", d.ContentType, d.DeliveryMode)
		}
		if len(d.Headers) != len(headers) || len(headers) > 0 && !reflect.DeepEqual(d.Headers, headers) {
			t.Errorf("headers %v, want %v", d.Headers, headers)
		}
		if d.Exchange != r.name || d.RoutingKey != r.name {
			t.Errorf("exchange %q, key %q", d.Exchange, d.RoutingKey)
		}
		// gofort/dispatcher's messages have none of these properties, and its workers do not read them.
		if d.MessageId != task.UUID || d.Type != task.Name || d.Timestamp.IsZero() {
			t.Errorf("message id %q, type %q, timestamp %v", d.MessageId, d.Type, d.Timestamp)
		}
		if d.ContentEncoding != "" || d.Priority != 0 || d.CorrelationId != "" || d.ReplyTo != "" || d.Expiration != "" || d.UserId != "" || d.AppId != "" {
			t.Errorf("other properties: %+v", d)
		}
	}
}

// A message as gofort/dispatcher's senders write it runs. It has no message id, type or timestamp.
func TestCompatItsMessagesRun(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	got := make(chan []any, 1)
	r.worker(tasks{
		"all":  {TaskUUIDAsFirstArg: true, Function: func(uuid string, s string, n int64, f float32) { got <- []any{uuid, s, n, f} }},
		"none": fn(func() { got <- []any{} }),
		"id":   {TaskUUIDAsFirstArg: true, Function: func(uuid string) { got <- []any{uuid} }},
	}, limit(1))
	for _, c := range []struct {
		body string
		want []any
	}{
		{`{"uuid":"u-1","name":"all","args":[{"type":"string","value":"a\u003cb"},{"type":"int64","value":9007199254740993},{"type":"float32","value":0.1}]}`,
			[]any{"u-1", "a<b", int64(9007199254740993), float32(0.1)}},
		{`{"uuid":"u-2","name":"none","args":null}`, []any{}},
		{`{"uuid":"u-3","name":"none","args":[]}`, []any{}},
		{`{"uuid":"u-4","name":"id","args":null}`, []any{"u-4"}},
		{`{"uuid":"u-4","name":"id","args":null}`, []any{"u-4"}}, // the same body again is another task
	} {
		r.sendBody(c.body)
		if got := wait(t, got, "call"); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.body, got, c.want)
		}
	}
	// A message with the properties and headers of other libraries runs too. Some of its header types are never written
	// by this library.
	r.send(amqp.Publishing{
		ContentType: "application/json", DeliveryMode: 2, Priority: 3, CorrelationId: "c", AppId: "app", Type: "not the name",
		Headers: amqp.Table{"d": amqp.Decimal{Scale: 2, Value: 314}, "i8": int8(1), "f": float32(1), "t": amqp.Table{"l": []interface{}{int16(2), nil}}, "b": []byte{0xff},
			"x-dispatcher-attempt": "a lie"},
		Body: []byte(`{"uuid":"u-5","name":"id","args":null,"more":{"a":[1]}}`),
	})
	if got := wait(t, got, "call"); !reflect.DeepEqual(got, []any{"u-5"}) {
		t.Errorf("got %v", got)
	}
	// A dead letter keeps these headers.
	r.send(amqp.Publishing{Headers: amqp.Table{"d": amqp.Decimal{Scale: 2, Value: 314}, "i8": int8(1), "CC": []interface{}{r.name}}, Body: []byte("{")})
	d := r.dead("malformed")
	if d.Headers["d"] != (amqp.Decimal{Scale: 2, Value: 314}) || d.Headers["i8"] != int8(1) || string(d.Body) != "{" {
		t.Errorf("dead letter %s with %v", d.Body, d.Headers)
	}
	r.sendBody(`{"uuid":"u-6","name":"id","args":null}`)
	wait(t, got, "call")
	if s := r.server.Stats(); s.Received != 8 { // a copied CC header would have routed the dead letter back
		t.Errorf("stats %+v", s)
	}
}

// Exchange, queue and binding are the same as gofort/dispatcher's, so both libraries can run at the same time. Either
// may declare them first.
func TestCompatTopologyIsItsOwn(t *testing.T) {
	t.Parallel()
	amqpURL(t)
	t.Run("it first", func(t *testing.T) {
		t.Parallel()
		r := newPlace(t)
		if err := r.declare(r.raw()); err != nil {
			t.Fatal(err)
		}
		r.serve(r.ownQueue)
		got := make(chan int, 1)
		r.worker(tasks{"f": fn(func() { got <- 1 })})
		r.publish("f")
		wait(t, got, "task")
	})
	t.Run("we first", func(t *testing.T) {
		t.Parallel()
		r := newPlace(t)
		r.serve(r.ownQueue)
		r.newWorker(nil)
		if err := r.declare(r.raw()); err != nil {
			t.Errorf("gofort/dispatcher's declarations failed: %v", err)
		}
	})
}

// gofort/dispatcher's workers cannot run a task with an argument type that only this library knows. The README warns
// about that. They know every type that Args infers for plain values.
func TestCompatPlainValuesUseTheFourteen(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, a := range fourteen {
		known[a.Type] = true
	}
	for i, a := range dispatcher.Args(true, "s", 1, int8(1), int16(1), int32(1), int64(1), uint(1), uint8(1), uint16(1), uint32(1), uint64(1), float32(1), 1.0) {
		if !known[a.Type] {
			t.Errorf("argument %d has type %q, which gofort/dispatcher does not know", i, a.Type)
		}
	}
	if len(known) != 14 {
		t.Errorf("%d types, want 14", len(known))
	}
}

// Programs compare gofort/dispatcher's error texts, so the texts must be the same.
func TestCompatErrorTexts(t *testing.T) {
	t.Parallel()
	r := newRabbit(t)
	newServer := func(edit func(*dispatcher.ServerConfig)) error {
		_, _, err := dispatcher.NewServer(r.config(edit))
		return err
	}
	newWorker := func(c dispatcher.WorkerConfig) error {
		_, err := r.server.NewWorker(&c, nil)
		return err
	}
	w := r.worker(nil)
	_, unknown := r.server.GetWorkerByName("nobody")
	name := r.server.Publish(&dispatcher.Task{})
	exists := newWorker(dispatcher.WorkerConfig{Name: "w", Queue: r.name})
	noName, noQueue := newWorker(dispatcher.WorkerConfig{Queue: r.name}), newWorker(dispatcher.WorkerConfig{Name: "x"})
	w.Close()
	r.cut()
	for want, err := range map[string]error{
		"Exchange parameter is required":          newServer(func(c *dispatcher.ServerConfig) { c.Exchange = "" }),
		"DefaultRoutingKey parameter is required": newServer(func(c *dispatcher.ServerConfig) { c.DefaultRoutingKey = "" }),
		"Empty queue name passed": newServer(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: "", BindingKeys: []string{"k"}}}
		}),
		"Empty binding key passed": newServer(func(c *dispatcher.ServerConfig) {
			c.InitQueues = []dispatcher.Queue{{Name: "q", BindingKeys: []string{""}}}
		}),
		"Worker name is required parameter":                         noName,
		"Worker queue is required parameter":                        noQueue,
		"Worker with the same name already exists":                  exists,
		"Worker not found":                                          unknown,
		"Task name was not passed":                                  name,
		"Service is disconnected":                                   r.server.Publish(&dispatcher.Task{Name: "f"}),
		"Can't start worker, because you are not connected to AMQP": w.Start(r.server),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if text := r.log.String(); strings.Contains(text, r.url.User.String()) {
		t.Errorf("the log shows credentials: %s", text)
	}
}
