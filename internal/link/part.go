package link

import (
	"fmt"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/logs"
)

// Undeclared describes a part that cannot be declared now. The root package has it too, and documents it.
type Undeclared struct {
	Kind    string
	Name    string
	Problem string
	Since   time.Time
}

// Part is one thing to declare, with its bindings.
type Part struct {
	Owner    string // the worker that needs it; "" = the server
	Kind     string // as in Undeclared
	Name     string
	Topology broker.Topology
}

// Whole returns the topology of all parts.
func Whole(parts []Part) broker.Topology {
	var t broker.Topology
	for _, p := range parts {
		t.Exchanges = append(t.Exchanges, p.Topology.Exchanges...)
		t.Queues = append(t.Queues, p.Topology.Queues...)
		t.Bindings = append(t.Bindings, p.Topology.Bindings...)
	}
	return t
}

// partKey identifies a part.
type partKey struct{ owner, kind, name string }

func (p *Part) key() partKey { return partKey{p.Owner, p.Kind, p.Name} }

// brief returns the text of a declaration error without the part's name at the beginning.
func (p *Part) brief(err error) string {
	return logs.Brief(err, fmt.Sprintf("declare %s %q: ", p.Kind, p.Name))
}
