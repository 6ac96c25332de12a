package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"go.etcd.io/bbolt"
)

// Names of the buckets. The only key in the last one has its name too.
var (
	waitingBucket = []byte("waiting")
	deadBucket    = []byte("dead")
	stateBucket   = []byte("state")
)

// format is the version of the file's content. An older program must not use a newer file: it could drop data that it
// does not know.
const format = 1

// state is stored by every commit, with a checksum. bbolt's own sequences have no checksum, and a sequence that goes
// back would give two entries the same key.
type state struct {
	format, commits, last uint64 // last is the number of the newest entry
	entries, dead, bytes  uint64
}

// table is the outbox in one transaction.
type table struct {
	tx            *bbolt.Tx
	waiting, dead *bbolt.Bucket
	state         state
	raw           []byte // state as it is in the file
	changed       bool
	err           error // an error of bbolt; nothing may be committed
}

func initialise(tx *bbolt.Tx) error {
	for _, name := range [][]byte{waitingBucket, deadBucket, stateBucket} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	return tx.Bucket(stateBucket).Put(stateBucket, (&state{format: format}).encode())
}

func newTable(tx *bbolt.Tx) (*table, error) {
	t := &table{tx: tx, waiting: tx.Bucket(waitingBucket), dead: tx.Bucket(deadBucket)}
	states := tx.Bucket(stateBucket)
	if t.waiting == nil || t.dead == nil || states == nil {
		return nil, fmt.Errorf("%w: it is not the file of an outbox", ErrDamaged)
	}
	t.raw = append(t.raw, states.Get(stateBucket)...)
	return t, t.state.decode(t.raw)
}

// save stores the state in the transaction and returns its encoded form.
func (t *table) save() ([]byte, error) {
	switch {
	case t.err != nil:
		return nil, t.err
	case !t.changed:
		return nil, errUnchanged
	}
	t.state.commits++
	raw := t.state.encode()
	return raw, t.tx.Bucket(stateBucket).Put(stateBucket, raw)
}

// add adds a new entry behind the others of its routing key.
func (t *table) add(routingKey string, payload []byte, cfg Config) error {
	key := entryKey(routingKey, t.state.last+1)
	value := seal(key, payload)
	size := uint64(len(key) + len(value))
	if n := t.state.entries + t.state.dead; n >= uint64(cfg.MaxEntries) || t.state.bytes+size > uint64(cfg.MaxBytes) {
		return fmt.Errorf("%w: it holds %d entries, %d of them dead, with %d bytes; "+
			"the maximum is %d entries with %d bytes; this entry has %d bytes",
			dispatcher.ErrOutboxFull, n, t.state.dead, t.state.bytes, cfg.MaxEntries, cfg.MaxBytes, size)
	}
	t.state.last++
	t.put(t.waiting, key, value)
	return nil
}

// remove removes an entry from a bucket. It returns false if there is none.
func (t *table) remove(from *bbolt.Bucket, key []byte) (bool, error) {
	value := from.Get(key)
	if value == nil {
		return false, nil
	}
	t.delete(from, key, len(value))
	return true, nil
}

// bury moves an entry to the dead ones, with the same key.
func (t *table) bury(key []byte, refused string, at time.Time) (bool, error) {
	value := t.waiting.Get(key)
	if value == nil {
		return false, nil
	}
	e, err := decodeEntry(key, value)
	if err != nil {
		return true, err
	}
	e.Refused, e.RefusedAt = refused, at
	payload, err := encodeEntry(&e)
	if err != nil {
		return true, err
	}
	t.delete(t.waiting, key, len(value))
	t.put(t.dead, key, seal(key, payload))
	return true, nil
}

// revive moves a dead entry behind the others of its routing key.
func (t *table) revive(key []byte, routingKey string) (bool, error) {
	value := t.dead.Get(key)
	if value == nil {
		return false, nil
	}
	e, err := decodeEntry(key, value)
	if err != nil {
		return true, err
	}
	e.Refused, e.RefusedAt = "", time.Time{}
	payload, err := encodeEntry(&e)
	if err != nil {
		return true, err
	}
	t.delete(t.dead, key, len(value))
	t.state.last++
	key = entryKey(routingKey, t.state.last)
	t.put(t.waiting, key, seal(key, payload))
	return true, nil
}

func (t *table) put(to *bbolt.Bucket, key, value []byte) {
	t.count(to, 1, len(key)+len(value))
	if err := to.Put(key, value); err != nil {
		t.err = err
	}
}

func (t *table) delete(from *bbolt.Bucket, key []byte, size int) {
	t.count(from, -1, -len(key)-size)
	if err := from.Delete(key); err != nil {
		t.err = err
	}
}

func (t *table) count(in *bbolt.Bucket, entries, bytes int) {
	t.changed = true
	n := &t.state.entries
	if in == t.dead {
		n = &t.state.dead
	}
	*n += uint64(entries) // two's complement: negative ones subtract
	t.state.bytes += uint64(bytes)
}

// maxKey is the length of the longest routing key. A key stores that length in two bytes.
const maxKey = 1<<16 - 1

// keyPrefix returns the prefix of the keys of all entries of a routing key.
func keyPrefix(routingKey string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(routingKey))), routingKey...)
}

// entryKey returns the key of one entry. The number is big endian, so that keys sort by number.
func entryKey(routingKey string, number uint64) []byte {
	return binary.BigEndian.AppendUint64(keyPrefix(routingKey), number)
}

// splitKey is the reverse of entryKey.
func splitKey(key []byte) (routingKey string, number uint64, err error) {
	if len(key) < 10 || len(key) != 10+int(binary.BigEndian.Uint16(key)) {
		return "", 0, fmt.Errorf("%w: a key is not the key of an entry", ErrDamaged)
	}
	return string(key[2 : len(key)-8]), binary.BigEndian.Uint64(key[len(key)-8:]), nil
}

func (s *state) fields() []*uint64 {
	return []*uint64{&s.format, &s.commits, &s.last, &s.entries, &s.dead, &s.bytes}
}

func (s *state) encode() []byte {
	var payload []byte
	for _, f := range s.fields() {
		payload = binary.BigEndian.AppendUint64(payload, *f)
	}
	return seal(stateBucket, payload)
}

func (s *state) decode(value []byte) error {
	payload, err := unseal(stateBucket, value)
	if err != nil {
		return err
	}
	for _, f := range s.fields() {
		if len(payload) < 8 {
			return fmt.Errorf("%w: its state is cut short", ErrDamaged)
		}
		*f, payload = binary.BigEndian.Uint64(payload), payload[8:]
		if f == &s.format && s.format != format {
			return fmt.Errorf("the file has format %d, but this program knows only format %d", s.format, format)
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal puts a checksum of key and payload in front of payload.
func seal(key, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), checksum(key, payload)), payload...)
}

// unseal is the reverse of seal.
func unseal(key, value []byte) ([]byte, error) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != checksum(key, value[4:]) {
		return nil, fmt.Errorf("%w: the checksum of %q does not match", ErrDamaged, key)
	}
	return value[4:], nil
}

func checksum(key, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, payload)
}
