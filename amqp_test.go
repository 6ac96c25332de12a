package dispatcher

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestURLsAreSplitOnlyWhereANewOneBegins(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]string{
		"":                                {"amqp://guest:guest@localhost:5672/"},
		"amqp://a/":                       {"amqp://a/"},
		"amqp://a/,amqps://b/ , amqp://c": {"amqp://a/", "amqps://b/", "amqp://c"},
		"amqp://u:p,w@a/,amqp://b/":       {"amqp://u:p,w@a/", "amqp://b/"},
		"http://a/":                       {"http://a/"},
	} {
		if got := splitURLs(list); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", list, got, want)
		}
	}
}

func TestSecureConnectionTurnsTheSchemeAndKeepsThePort(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]ServerConfig{
		"SecureConnection": {AMQPConnectionString: "amqp://u:secret@a:5672/v,amqps://b/", SecureConnection: true},
		"TLSConfig":        {AMQPConnectionString: "amqp://u:secret@a:5672/v,amqps://b/", TLSConfig: &tls.Config{}},
	} {
		b, err := newRabbitMQ(&cfg)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if text := fmt.Sprint(b); !strings.Contains(text, "amqps://a:5672/v") || strings.Contains(text, "amqp://") || strings.Contains(text, "secret") {
			t.Errorf("%s: %s", name, text)
		}
	}
}
