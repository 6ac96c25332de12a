package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryPageComesToItsEnd(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"embedded": "", "RabbitMQ": os.Getenv("DISPATCHER_AMQP_CON")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "RabbitMQ" && url == "" {
				t.Skip("DISPATCHER_AMQP_CON is not set")
			}
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), url, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
				t.Fatalf("exit code %d\n%s%s", code, stdout.String(), stderr.String())
			}
			// Lines of different pages come in any order.
			for _, want := range []string{
				"/steady  attempt 1: fetched\n",
				"/flaky   attempt 1: 503 Service Unavailable, next in ",
				"/flaky   attempt 2: 503 Service Unavailable, next in ",
				"/flaky   attempt 3: fetched\n",
				"/busy    attempt 1: 429 Too Many Requests, next in 1s\n",
				"/busy    attempt 2: fetched\n",
				"/missing attempt 1: 404 Not Found, dead letter: permanent\n",
				"/broken  attempt 2: 500 Internal Server Error, next in ",
				"/broken  attempt 3: 500 Internal Server Error, dead letter: failed\n",
				"task timeout, dead letter: timeout\n",
				"\nDead letters: 3\n",
				"/missing: permanent, attempts: 1, the last: 404 Not Found\n",
				"/broken: failed, attempts: 3, the last: 500 Internal Server Error\n",
				"/broken  attempt 1: fetched\n", // replayed, without a past
				"\nDead letters: 1\n/slow: timeout, attempts: 3, the last: task timeout of 1s: ",
				"\n6 tasks: 7 retries, 3 dead letters, 1 replayed, 1 left\n",
			} {
				if strings.Count(stdout.String(), want) != 1 {
					t.Errorf("the output does not contain %q exactly once", want)
				}
			}
			if t.Failed() {
				t.Log(stdout.String())
			}
		})
	}
}

func TestInterruptedIsAnError(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if code := run(ctx, "", &stdout, &stderr); code != 1 || !strings.Contains(stderr.String(), context.Canceled.Error()) {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
}

func TestABadURLIsToldWithoutItsPassword(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), "http://me:hunter2@localhost/", &stdout, &stderr); code != 1 || stderr.Len() == 0 || strings.Contains(stderr.String(), "hunter2") {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
}
