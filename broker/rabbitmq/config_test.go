package rabbitmq_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// Every bad URL is a permanent error. No error shows the password or a part of it.
func TestBadConfigIsPermanentAndShowsNoCredentials(t *testing.T) {
	t.Parallel()
	const secret = "hush"
	for name, cfg := range map[string]rabbitmq.Config{
		"no URL":               {},
		"empty URL":            {URLs: []string{""}},
		"other scheme":         {URLs: []string{"http://user:" + secret + "@host/"}},
		"hash in the password": {URLs: []string{"amqp://user:" + secret + "#more@host:5672/"}},
		"digits and a hash":    {URLs: []string{"amqp://user:12345#" + secret + "@host/"}},
		"digits and a ?":       {URLs: []string{"amqp://user:12345?" + secret + "@host/"}},
		"digits, ? and =":      {URLs: []string{"amqp://user:12345?heartbeat=1&" + secret + "=@host/"}},
		"digits and a slash":   {URLs: []string{"amqp://user:12345/" + secret + "@host/"}},
		"user hash":            {URLs: []string{"amqp://" + secret + "#user@host/"}},
		"no slashes":           {URLs: []string{"amqp:user:" + secret + "@host:5672/"}},
		"one slash":            {URLs: []string{"amqp:/user:" + secret + "@host:5672/"}},
		"one slash, no user":   {URLs: []string{"amqp:/" + secret + "/"}},
		"upper case":           {URLs: []string{"AMQP:" + secret + "@host"}},
		"fragment at the end":  {URLs: []string{"amqp://user:" + secret + "@host/v#1"}},
		"misspelt parameter":   {URLs: []string{"amqp://user:" + secret + "@host/?heartbeats=5"}},
		"semicolon":            {URLs: []string{"amqp://user:" + secret + "@host/?heartbeat=5;channel_max=5"}},
		"parameter twice":      {URLs: []string{"amqp://user:" + secret + "@host/?heartbeat=5&heartbeat=6"}},
		"hosts":                {URLs: []string{"amqp://user:" + secret + "@host,other/"}},
		"slash in it":          {URLs: []string{"amqp://user:" + secret + "/more@host:5672/"}},
		"percent in it":        {URLs: []string{"amqp://user:%zz" + secret + "@host/"}},
		"space in it":          {URLs: []string{"amqp://user:" + secret + " more@host/"}},
		"bad port":             {URLs: []string{"amqp://user:" + secret + "@host:" + secret + "/"}},
		"port out of range":    {URLs: []string{"amqp://user:" + secret + "@host:99999999999/"}},
		"bad parameter":        {URLs: []string{"amqp://user:" + secret + "@host/?heartbeat=" + secret}},
		"second URL":           {URLs: []string{"amqp://localhost", "amqp://user:" + secret + "\x7f@host"}},
		"TLS without amqps":    {URLs: []string{"amqp://user:" + secret + "@host/"}, TLS: &tls.Config{}},
		"queue type":           {URLs: []string{"amqp://user:" + secret + "@host/"}, QueueType: "stream"},
	} {
		_, err := rabbitmq.New(cfg)
		if !errors.Is(err, broker.ErrPermanent) {
			t.Errorf("%s: %v, want ErrPermanent", name, err)
		}
		for _, text := range []string{fmt.Sprint(err), fmt.Sprintf("%+v %#v %q", err, err, err), fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg, &cfg)} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: the password is shown: %s", name, text)
			}
		}
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := rabbitmq.New(rabbitmq.Config{URLs: []string{"amqp://localhost", "http://x", ""}, QueueType: "odd"})
	for _, want := range []string{"URL 2 of 3", "URL 3 of 3", `"odd"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
}

func TestBrokerShowsNoCredentials(t *testing.T) {
	t.Parallel()
	b := newBroker(t, rabbitmq.Config{URLs: []string{"amqp://someone:hush@127.0.0.1:1/v", "amqps://someone:hush@127.0.0.1:1"}})
	_, err := b.Open(testContext(t))
	if err == nil || errors.Is(err, broker.ErrPermanent) {
		t.Errorf("open with nobody listening: %v, want an error that is not permanent", err)
	}
	for _, text := range []string{b.String(), fmt.Sprintf("%v %+v %#v %s", b, b, b, b), fmt.Sprint(err)} {
		if strings.Contains(text, "hush") || strings.Contains(text, "someone") || !strings.Contains(text, "127.0.0.1:1") {
			t.Errorf("%s", text)
		}
	}
}

// Every RabbitMQ from 3.10 to 4.3 must accept the declared arguments. Newer versions refuse more of them.
func TestOnlyPortableArgumentsAreDeclared(t *testing.T) {
	t.Parallel()
	portable := map[string]bool{
		"x-queue-type": true, "x-dead-letter-exchange": true, "x-dead-letter-routing-key": true, "x-dead-letter-strategy": true,
		"x-message-ttl": true, "x-max-length": true, "x-overflow": true, "x-single-active-consumer": true,
		"x-delivery-limit": true, "x-expires": true, "alternate-exchange": true,
	}
	declared := rabbitmq.DelayArguments()
	for _, kind := range []string{"", "quorum"} {
		args, err := rabbitmq.QueueArguments(kind)
		if err != nil {
			t.Error(err)
		}
		declared = append(declared, args)
	}
	for _, args := range declared {
		for name := range args {
			if !portable[name] {
				t.Errorf("argument %s is declared, with %v", name, args)
			}
		}
	}
	if args, _ := rabbitmq.QueueArguments(""); args != nil {
		t.Errorf("queues without a type are declared with %v", args)
	}
}

func TestConfigIsCopied(t *testing.T) {
	t.Parallel()
	cfg := rabbitmq.Config{URLs: []string{"amqps://127.0.0.1:1"}, TLS: &tls.Config{}, ConnectionName: "name", QueueType: "quorum"}
	before := reflect.ValueOf(cfg)
	for i := range before.NumField() {
		if before.Field(i).IsZero() {
			t.Errorf("this test does not set %s", before.Type().Field(i).Name)
		}
	}
	b := newBroker(t, cfg)
	cfg.URLs[0] = "amqps://127.0.0.1:2"
	_, err := b.Open(testContext(t))
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("open after the caller changed its Config: %v", err)
	}
	if cfg.TLS.ServerName != "" || cfg.TLS.MinVersion != 0 {
		t.Error("the caller's TLS configuration was changed")
	}
}

// New accepts every valid URL.
func TestGoodURLsAreTaken(t *testing.T) {
	t.Parallel()
	for _, u := range []string{
		"amqp://", "amqp://host", "amqps://host:1/", "amqp:///vhost", "amqp://user@host", "amqp://us@er:a@b:c@host/v", "AMQP://host/",
		"amqp://user:12345%23%3F%2F%2C@host/v%2F1", "amqp://[::1]:5672/%2F", "amqp://u:a,b@host/?heartbeat=5&channel_max=9&connection_timeout=3",
		"amqps://host/?auth_mechanism=external&auth_mechanism=plain&server_name_indication=x",
	} {
		if _, err := rabbitmq.New(rabbitmq.Config{URLs: []string{u}}); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}
