package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"go.etcd.io/bbolt"
)

// check reads the whole file and checks that it holds what was written. The error Is ErrDamaged, unless a newer program
// has written the file.
func check(db *bbolt.DB, file *os.File) error {
	for page := range int64(2) {
		if err := checkHeader(file, page*int64(db.Info().PageSize)); err != nil {
			return fmt.Errorf("%w: header page %d: %w", ErrDamaged, page, err)
		}
	}
	return db.View(func(tx *bbolt.Tx) error {
		info, err := file.Stat()
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return fmt.Errorf("%w: it is cut short: %d of %d bytes", ErrDamaged, info.Size(), tx.Size())
		}
		if err := checkBounds(tx, file); err != nil {
			return err
		}
		if err := checkEntries(tx); err != nil {
			return err
		}
		return checkPages(tx)
	})
}

// checkHeader checks one of the two header pages. bbolt needs only one of them: if the other is damaged, it silently
// goes back to the previous commit. This is the layout of file format 2 of bbolt (internal/common: Page and Meta).
func checkHeader(file *os.File, offset int64) error {
	const (
		pageHeader = 16
		magic      = 0xED0CDAED
		version    = 2
		sum        = 56 // offset of the checksum of the bytes before it
	)
	var b [sum + 8]byte
	if _, err := file.ReadAt(b[:], offset+pageHeader); err != nil {
		return err
	}
	hash := fnv.New64a()
	_, _ = hash.Write(b[:sum])
	native := binary.NativeEndian
	if native.Uint32(b[:]) != magic || native.Uint32(b[4:]) != version || native.Uint64(b[sum:]) != hash.Sum64() {
		return errors.New("the checksum does not match; the last commit may be in this page")
	}
	return nil
}

// checkEntries decodes all entries and counts them. A page that was replaced with an older one is valid in itself, but
// the count differs.
func checkEntries(tx *bbolt.Tx) error {
	t, err := newTable(tx)
	if err != nil {
		return err
	}
	found := state{format: t.state.format, commits: t.state.commits, last: t.state.last}
	for bucket, n := range map[*bbolt.Bucket]*uint64{t.waiting: &found.entries, t.dead: &found.dead} {
		err := bucket.ForEach(func(k, v []byte) error {
			_, number, err := splitKey(k)
			if err != nil {
				return err
			}
			if number > t.state.last {
				return fmt.Errorf("%w: entry %d is newer than the newest", ErrDamaged, number)
			}
			if _, err := decodeEntry(k, v); err != nil {
				return err
			}
			*n++
			found.bytes += uint64(len(k) + len(v))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if found != t.state {
		return fmt.Errorf("%w: it holds %d entries and %d dead ones with %d bytes; "+
			"%d and %d with %d bytes were written",
			ErrDamaged, found.entries, found.dead, found.bytes, t.state.entries, t.state.dead, t.state.bytes)
	}
	return nil
}

// checkPages lets bbolt compare its list of free pages with the used pages. A later commit would overwrite a used page
// in that list. bbolt checks on a goroutine of its own, which cannot be guarded, so checkPages runs after checkBounds.
func checkPages(tx *bbolt.Tx) error {
	var first error
	for err := range tx.Check() { // read to the end, or its goroutine leaks
		if first == nil {
			first = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return first
}
