package rabbitmq

import (
	"cmp"
	"maps"
	"slices"
)

// ringSize is more than the window, so that only a message whose queue does not answer is ever late. A power of two.
const ringSize = 2048

// ring holds the flights of a pipe by their delivery tags: 1 for the first message of a channel, and so on. The zero
// value is ready. Guarded by publisher.mu.
type ring struct {
	recent [ringSize]*flight  // the flight with one of the last ringSize tags is at tag % ringSize
	late   map[uint64]*flight // those with older tags
	last   uint64             // tag
	low    uint64             // no recent flight has a lower tag
	n      int
}

// put adds a flight and gives it the next tag.
func (r *ring) put(f *flight) {
	r.last++
	f.tag = r.last
	place := &r.recent[f.tag%ringSize]
	if old := *place; old != nil {
		if r.late == nil {
			r.late = make(map[uint64]*flight)
		}
		r.late[old.tag] = old
	}
	*place = f
	r.n++
	if r.last >= ringSize {
		r.low = max(r.low, r.last-ringSize+1)
	}
}

func (r *ring) remove(f *flight) {
	if place := &r.recent[f.tag%ringSize]; *place == f {
		*place = nil
	} else {
		delete(r.late, f.tag)
	}
	r.n--
	for r.low <= r.last && r.recent[r.low%ringSize] == nil {
		r.low++
	}
}

// each calls do for the flight with a tag or, with multiple, for all flights up to it, in any order. do may remove the
// flight.
func (r *ring) each(tag uint64, multiple bool, do func(*flight)) {
	if multiple {
		tag = min(tag, r.last)
		for t, f := range r.late {
			if t <= tag {
				do(f)
			}
		}
		for t := r.low; t <= tag; t++ {
			if f := r.recent[t%ringSize]; f != nil && f.tag == t {
				do(f)
			}
		}
		return
	}
	if f := r.recent[tag%ringSize]; f != nil && f.tag == tag {
		do(f)
	} else if f := r.late[tag]; f != nil {
		do(f)
	}
}

// oldest returns the flight that was written first; nil = none.
func (r *ring) oldest() *flight {
	if len(r.late) > 0 {
		return r.late[slices.Min(slices.Collect(maps.Keys(r.late)))]
	}
	for t := r.low; t <= r.last; t++ {
		if f := r.recent[t%ringSize]; f != nil {
			return f
		}
	}
	return nil
}

// newest returns the flight that was written last; nil = none.
func (r *ring) newest() *flight {
	if all := r.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// all returns the flights in the order of writing.
func (r *ring) all() []*flight {
	all := slices.SortedFunc(maps.Values(r.late), func(a, b *flight) int { return cmp.Compare(a.tag, b.tag) })
	for t := r.low; t <= r.last; t++ {
		if f := r.recent[t%ringSize]; f != nil {
			all = append(all, f)
		}
	}
	return all
}
