package memory

// list is a doubly linked list whose links live inside its members, so that adding and removing a member needs no
// allocation and no search. container/list would allocate for every delivery.
type list[T any] struct {
	first, last *links[T]
	len         int
}

// links is embedded by the members of a list. It is in one list at a time.
type links[T any] struct {
	prev, next *links[T]
	in         *list[T]
	self       T // the member, set once
}

func (l *list[T]) pushBack(m *links[T]) {
	m.in, m.prev, m.next = l, l.last, nil
	if l.last == nil {
		l.first = m
	} else {
		l.last.next = m
	}
	l.last = m
	l.len++
}

// remove takes m out; it does nothing if m is not in l.
func (l *list[T]) remove(m *links[T]) {
	if m.in != l {
		return
	}
	if m.prev == nil {
		l.first = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		l.last = m.prev
	} else {
		m.next.prev = m.prev
	}
	m.in, m.prev, m.next = nil, nil, nil
	l.len--
}
