package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

const (
	taskName  = "bench"
	text      = "one hundred and sixty bytes in all"
	bodyBytes = 160
)

// newTask makes the task that every program publishes. Its arguments are a string and a number.
func newTask() *dispatcher.Task { return dispatcher.NewTask(taskName, text, 42) }

// body is an encoded task.
type body struct {
	id   string
	json []byte
}

// encoded returns n tasks as the library would encode them. Each has a uuid of its own, because a worker does not run
// two tasks with the same uuid at once.
func encoded(n int) ([]body, error) {
	bodies := make([]body, n)
	for i := range bodies {
		task := newTask()
		task.UUID = fmt.Sprintf("00000000-0000-4000-8000-%012d", i)
		data, err := json.Marshal(task)
		if err == nil && len(data) != bodyBytes {
			err = fmt.Errorf("the body has %d bytes, not %d: %s", len(data), bodyBytes, data)
		}
		if err != nil {
			return nil, err
		}
		bodies[i] = body{task.UUID, data}
	}
	return bodies, nil
}

// decoded is what a program by hand decodes a body into.
type decoded struct {
	UUID string
	Name string
	Args []struct {
		Type  string
		Value any
	}
}

func decode(data []byte) error {
	var task decoded
	if err := json.Unmarshal(data, &task); err != nil {
		return err
	}
	if task.Name != taskName || len(task.Args) != 2 {
		return fmt.Errorf("not the task: %s", data)
	}
	return nil
}

// arguments are those of the task, for libraries that encode a struct.
type arguments struct {
	Text   string `json:"text"`
	Number int64  `json:"number"`
}

// Kind makes it River's job.
func (arguments) Kind() string { return taskName }

// began is what times in arguments count from: a clock that nobody sets.
var began = time.Now()

// now returns the time as an argument of a task.
func now() int64 { return int64(time.Since(began)) }

// since returns how long ago an argument of now was.
func since(then int64) time.Duration { return time.Since(began) - time.Duration(then) }
