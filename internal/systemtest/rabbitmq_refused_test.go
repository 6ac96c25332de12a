package systemtest_test

import (
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher"
)

// Each bad input gives an error that names the remedy and hides the password. None hangs.

func TestRabbitMQ_BadURLsAreErrorsWithoutThePassword(t *testing.T) {
	t.Parallel()
	amqpURL(t)
	for name, u := range map[string]string{
		"other scheme":         "http://user:hush@localhost:1/",
		"no scheme":            "user:hush@localhost:1",
		"slash in a password":  "amqp://user:hush/hush@localhost:1/",
		"hash in a password":   "amqp://user:hush#hush@localhost:1/",
		"bad escape":           "amqp://user:%zzhush@localhost:1/",
		"space in a password":  "amqp://user:hush hush@localhost:1/",
		"newline at the end":   "amqp://user:hush@localhost:1/\n",
		"bad port":             "amqp://user:hush@localhost:hush/",
		"port out of range":    "amqp://user:hush@localhost:99999999/",
		"bad parameter":        "amqp://user:hush@localhost:1/?heartbeat=hush",
		"second URL":           "amqp://user:fine@localhost:1/,amqp://user:hush%@localhost:1/",
		"other second scheme":  "amqp://user:hush@localhost:1/,http://user:hush@localhost:1/",
		"second, no scheme":    "amqp://user:fine@localhost:1/,user:hush@localhost:1/",
		"control character":    "amqp://user:hush\x00@localhost:1/",
		"only a comma":         ",",
		"no file of authority": "amqps://user:hush@localhost:1/?cacertfile=/no/such/file",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			cfg := &dispatcher.ServerConfig{AMQPConnectionString: u, Exchange: "x", DefaultRoutingKey: "k", Logger: log}
			within(t, patience, "NewServer", func() {
				_, _, err := dispatcher.NewServer(cfg)
				says(t, "NewServer", err)
			})
			noSecret(t, "log", log.String())
		})
	}
}

// A comma in a password does not split the URL.
func TestRabbitMQ_SeveralURLsAreTriedInOneRound(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	down := newPlace(t).proxy
	down.Refuse(true)
	for range 5 { // the order is random
		server, _, err := dispatcher.NewServer(r.config(func(c *dispatcher.ServerConfig) {
			c.AMQPConnectionString = "amqp://user:hu,sh@" + down.Addr() + "/, " + r.through(r.proxy.Addr())
			c.ReconnectionRetriesForever = false
		}))
		if err != nil {
			t.Fatal(err)
		}
		server.Close()
	}
	r.proxy.Refuse(true)
	_, _, err := dispatcher.NewServer(r.config(func(c *dispatcher.ServerConfig) {
		c.AMQPConnectionString = "amqp://user:hu,sh,hush@" + down.Addr() + "/, " + r.through(r.proxy.Addr())
		c.ReconnectionRetriesForever = false
	}))
	says(t, "NewServer", err, down.Addr(), r.proxy.Addr())
	if strings.Contains(err.Error(), "sh,") {
		t.Errorf("the error shows a part of the password: %v", err)
	}
}

func TestRabbitMQ_WrongCredentialsAndVirtualHostsAreNamed(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	missing := *r.url
	missing.Host, missing.Path = r.proxy.Addr(), "/no.such.vhost"
	for name, c := range map[string]struct {
		url   string
		words []string
	}{
		"wrong password":       {r.as("guest", "hush"), []string{r.proxy.Addr(), "user and password"}},
		"no such user":         {r.as("no.such.user", "hush"), []string{r.proxy.Addr(), "user and password"}},
		"missing virtual host": {missing.String(), []string{r.proxy.Addr(), "no.such.vhost", "virtual host"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			within(t, patience, "NewServer", func() {
				_, _, err := dispatcher.NewServer(r.config(func(c2 *dispatcher.ServerConfig) {
					c2.AMQPConnectionString, c2.Logger = c.url, log
					c2.ReconnectionRetriesForever, c2.ReconnectionRetries = false, 1
				}))
				says(t, "NewServer", err, c.words...)
			})
			if text := log.String(); !strings.Contains(text, "retry_in=") || strings.Contains(text, "hush") || strings.Contains(text, r.url.User.String()) {
				t.Errorf("log: %s", text)
			}
		})
	}
}

// Printing the configuration or the server must not show the password either.
func TestRabbitMQ_NoFormShowsThePassword(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	cfg := r.config(func(c *dispatcher.ServerConfig) { c.AMQPConnectionString = r.as("guest", "hush"); c.Logger = nil })
	noSecret(t, "&ServerConfig", cfg)
	noSecret(t, "ServerConfig", *cfg)
	r.serve()
	within(t, patience, "Close", r.server.Close)
	if text := fmt.Sprintf("%v %+v", r.server, r.server); strings.Contains(text, r.url.User.String()) {
		t.Error("printing the server shows the credentials")
	}
}

func TestRabbitMQ_WhatExistsOtherwiseIsNamed(t *testing.T) {
	t.Parallel()
	amqpURL(t)
	newServer := func(t *testing.T, r *rabbit, words ...string) {
		within(t, patience, "NewServer", func() {
			_, _, err := dispatcher.NewServer(r.config(r.ownQueue)) // it retries for ever, but a refusal must not be retried
			outcome(t, "NewServer", err, dispatcher.ErrRejected)
			says(t, "NewServer", err, append(words, r.name, "delete it or use the same properties")...)
		})
	}
	t.Run("exchange of another kind", func(t *testing.T) {
		t.Parallel()
		r := newPlace(t)
		if err := r.raw().ExchangeDeclare(r.name, "topic", true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		newServer(t, r, "exchange", "type")
	})
	t.Run("transient exchange", func(t *testing.T) {
		t.Parallel()
		r := newPlace(t)
		if err := r.raw().ExchangeDeclare(r.name, "direct", false, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		newServer(t, r, "exchange", "durable")
	})
	for name, args := range map[string]amqp.Table{
		"time to live": {"x-message-ttl": 60000},
		"quorum":       {"x-queue-type": "quorum"},
	} {
		t.Run("queue with "+name, func(t *testing.T) {
			t.Parallel()
			r := newPlace(t)
			if _, err := r.raw().QueueDeclare(r.name, true, false, false, false, args); err != nil {
				t.Fatal(err)
			}
			newServer(t, r, "queue")
			r.serve()
			within(t, patience, "NewWorker", func() {
				_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: r.name}, nil)
				says(t, "NewWorker", err, `"w"`, r.name, "delete it or use the same properties")
			})
			if s := r.server.Stats(); s.Reconnects != 0 {
				t.Errorf("%d reconnects", s.Reconnects)
			}
		})
	}
	t.Run("a later change by an operator is waited out", func(t *testing.T) {
		t.Parallel()
		r := newPlace(t)
		r.serve(r.ownQueue)
		r.cut()
		ch := r.raw()
		_, _ = ch.QueueDelete(r.name, false, false, false)
		if _, err := ch.QueueDeclare(r.name, true, false, false, false, amqp.Table{"x-max-length": 5}); err != nil {
			t.Fatal(err)
		}
		r.proxy.Refuse(false)
		eventually(t, "Health reports the problem", func() bool {
			u := r.server.Health(t.Context()).Undeclared
			return len(u) == 1 && strings.Contains(u[0].Problem, "delete it or use the same properties")
		})
		if _, err := ch.QueueDelete(r.name, false, false, false); err != nil {
			t.Fatal(err)
		}
		r.healed()
		r.publish("f")
	})
}

func TestRabbitMQ_MissingPermissionsAreNamed(t *testing.T) {
	t.Parallel()
	place := newPlace(t)
	ctl := controller(t)
	vhost := strings.TrimPrefix(place.url.Path, "/")
	if vhost == "" {
		vhost = "/"
	}
	user := func(what, configure, write, read string) string {
		name := place.name + "." + what
		control(t, ctl, "add_user", name, "hush")
		t.Cleanup(func() { control(t, ctl, "delete_user", name) })
		control(t, ctl, "set_permissions", "-p", vhost, name, configure, write, read)
		return name
	}
	noConfigure, noWrite := user("configure", "^$", ".*", ".*"), user("write", ".*", "^$", ".*")
	noRead, noDelays := user("read", ".*", ".*", `^dispatcher\.delay\.`), user("delays", ".*", ".*", `^test\.`)
	place.serve()
	place.newWorker(nil) // declares what delays need, because a user without configure permission cannot
	nobody := place.name + ".nobody"
	control(t, ctl, "add_user", nobody, "hush")
	t.Cleanup(func() { control(t, ctl, "delete_user", nobody) })

	// as returns a place, and an edit that makes its servers log in as that user.
	as := func(t *testing.T, user string) (*rabbit, func(*dispatcher.ServerConfig)) {
		r := newPlace(t)
		t.Cleanup(func() { noSecret(t, "log", r.log.String()) })
		return r, func(c *dispatcher.ServerConfig) { c.AMQPConnectionString = r.as(user, "hush") }
	}
	t.Run("no virtual host", func(t *testing.T) {
		r, login := as(t, nobody)
		within(t, patience, "NewServer", func() {
			_, _, err := dispatcher.NewServer(r.config(login, func(c *dispatcher.ServerConfig) { c.ReconnectionRetriesForever = false }))
			says(t, "NewServer", err, r.proxy.Addr(), "virtual host")
		})
	})
	t.Run("configure", func(t *testing.T) {
		r, login := as(t, noConfigure)
		within(t, patience, "NewServer", func() {
			_, _, err := dispatcher.NewServer(r.config(login)) // it retries for ever, but a refusal must not be retried
			says(t, "NewServer", err, r.name, "exchange", "configure permission")
		})
	})
	// Only the user who sets things up needs the configure permission. Once everything exists, publishing and working
	// need none.
	t.Run("configure, and all is there", func(t *testing.T) {
		r, login := as(t, noConfigure)
		ch := r.raw()
		if err := r.declare(ch); err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{".dead", ".suspects"} {
			if _, err := ch.QueueDeclare(r.name+suffix, true, false, false, false, nil); err != nil {
				t.Fatal(err)
			}
		}
		r.serve(login)
		got := make(chan int, 1)
		r.worker(tasks{"f": fn(func() { got <- 1 })})
		r.publish("f")
		wait(t, got, "task")
	})
	t.Run("write", func(t *testing.T) {
		r, login := as(t, noWrite)
		r.serve(login)
		within(t, patience, "Publish", func() {
			err := r.server.Publish(dispatcher.NewTask("f"))
			outcome(t, "Publish", err, dispatcher.ErrRejected)
			says(t, "Publish", err, r.name, "write permission")
		})
	})
	t.Run("write, for the binding", func(t *testing.T) {
		r, login := as(t, noWrite)
		r.serve(login)
		within(t, patience, "NewWorker", func() {
			_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: r.name, BindingKeys: []string{"k"}}, nil)
			says(t, "NewWorker", err, r.name, "write permission")
		})
	})
	t.Run("read, of what is due", func(t *testing.T) {
		r, login := as(t, noDelays)
		r.serve(login)
		within(t, patience, "NewWorker", func() {
			_, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: r.name, BindingKeys: []string{"k"}}, nil)
			says(t, "NewWorker", err, r.name, "dispatcher.delay.v2.deliver", "read permission on the exchange")
		})
	})
	t.Run("read", func(t *testing.T) {
		r, login := as(t, noRead)
		r.serve(login)
		w, err := r.server.NewWorker(&dispatcher.WorkerConfig{Name: "w", Queue: r.name}, nil)
		if err != nil {
			t.Fatal(err)
		}
		within(t, patience, "Start", func() { says(t, "Start", w.Start(r.server), r.name, "read permission on the queue") })
		if s := r.server.Stats(); s.Reconnects != 0 {
			t.Errorf("%d reconnects", s.Reconnects)
		}
	})
}
