package bolt

import (
	"encoding/binary"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
)

// The pages of a file are read as bytes here. bbolt follows the numbers in them through its memory map without checking
// their bounds. Its Check does so on a goroutine of its own, where a memory fault ends the process. This is the layout
// of file format 2 of bbolt (internal/common: Page, Meta, InBucket).
const (
	pageHeader = 16 // id, flags, count, overflow
	// Of a branch: position, size of the key, page; of a leaf: flags, position, sizes of key and value.
	element       = 16
	bucketHeader  = 16 // root page, sequence
	branchPage    = 1
	leafPage      = 2
	freelistPage  = 16
	bucketElement = 1  // flag of a leaf's element
	maxDepth      = 64 // of the tree; bbolt fills pages by half, so no file is deeper
)

// pages walks over all used pages.
type pages struct {
	file *os.File
	size int64  // of a page
	end  uint64 // the first page number after the file
	seen map[uint64]bool
	free map[uint64]bool
}

// checkBounds checks that every number in a used page points into that page or to an existing page. The caller has
// checked the header pages.
func checkBounds(tx *bbolt.Tx, file *os.File) error {
	size := int64(tx.DB().Info().PageSize)
	var meta [64]byte
	for page := range int64(2) { // the newer one counts
		var b [64]byte
		if _, err := file.ReadAt(b[:], page*size+pageHeader); err != nil {
			return err
		}
		if binary.NativeEndian.Uint64(b[48:]) >= binary.NativeEndian.Uint64(meta[48:]) {
			meta = b
		}
	}
	w := &pages{
		file: file,
		size: size,
		end:  uint64(tx.Size() / size),
		seen: map[uint64]bool{0: true, 1: true},
		free: map[uint64]bool{},
	}
	if free := binary.NativeEndian.Uint64(meta[32:]); free != ^uint64(0) {
		if err := w.freelist(free); err != nil {
			return err
		}
	}
	return w.tree(binary.NativeEndian.Uint64(meta[16:]), 0)
}

// read returns a page together with its overflow pages.
func (w *pages) read(id uint64) ([]byte, error) {
	if id >= w.end {
		return nil, fmt.Errorf("%w: page %d is beyond the last one", ErrDamaged, id)
	}
	var header [pageHeader]byte
	if _, err := w.file.ReadAt(header[:], int64(id)*w.size); err != nil {
		return nil, err
	}
	more := uint64(binary.NativeEndian.Uint32(header[12:]))
	if id+more >= w.end {
		return nil, fmt.Errorf("%w: page %d ends beyond the last one", ErrDamaged, id)
	}
	if binary.NativeEndian.Uint64(header[:]) != id {
		return nil, fmt.Errorf("%w: page %d has another number", ErrDamaged, id)
	}
	for i := id; i <= id+more; i++ {
		if w.seen[i] {
			return nil, fmt.Errorf("%w: page %d is used twice", ErrDamaged, i)
		}
		if w.free[i] { // bbolt does not check this of overflow pages, and panics when it frees the page again
			return nil, fmt.Errorf("%w: page %d is used and free", ErrDamaged, i)
		}
		w.seen[i] = true
	}
	b := make([]byte, (1+more)*uint64(w.size))
	_, err := w.file.ReadAt(b, int64(id)*w.size)
	return b, err
}

func (w *pages) freelist(id uint64) error {
	b, err := w.read(id)
	if err != nil {
		return err
	}
	first, n := uint64(pageHeader), uint64(binary.NativeEndian.Uint16(b[10:]))
	if n == 0xFFFF { // the first element is the count
		first, n = first+8, binary.NativeEndian.Uint64(b[pageHeader:])
	}
	if binary.NativeEndian.Uint16(b[8:]) != freelistPage || n > (uint64(len(b))-first)/8 {
		return fmt.Errorf("%w: page %d is not a list of free pages", ErrDamaged, id)
	}
	for i := range n {
		page := binary.NativeEndian.Uint64(b[first+8*i:])
		if page >= w.end || w.seen[page] || w.free[page] {
			return fmt.Errorf("%w: page %d cannot be free", ErrDamaged, page)
		}
		w.free[page] = true
	}
	return nil
}

// tree walks over the pages of a bucket.
func (w *pages) tree(id uint64, depth int) error {
	b, err := w.read(id)
	if err != nil {
		return err
	}
	return w.page(id, b, depth)
}

// page checks one page, or the page inside the value of a small bucket.
func (w *pages) page(id uint64, b []byte, depth int) error {
	native := binary.NativeEndian
	if depth > maxDepth || len(b) < pageHeader {
		return fmt.Errorf("%w: page %d is too deep or too short", ErrDamaged, id)
	}
	flags, n := native.Uint16(b[8:]), int(native.Uint16(b[10:]))
	if flags != branchPage && flags != leafPage || pageHeader+n*element > len(b) {
		return fmt.Errorf("%w: page %d is neither branch nor leaf, or has too many elements", ErrDamaged, id)
	}
	for i := range n {
		at := pageHeader + i*element
		e := b[at : at+element]
		if flags == branchPage {
			if _, ok := slice(b, at, uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))); !ok {
				return fmt.Errorf("%w: element %d of page %d ends beyond it", ErrDamaged, i, id)
			}
			if err := w.tree(native.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
			continue
		}
		behindKey := uint64(native.Uint32(e[4:])) + uint64(native.Uint32(e[8:]))
		value, ok := slice(b, at, behindKey, uint64(native.Uint32(e[12:])))
		if !ok {
			return fmt.Errorf("%w: element %d of page %d ends beyond it", ErrDamaged, i, id)
		}
		if native.Uint32(e)&bucketElement == 0 {
			continue
		}
		if len(value) < bucketHeader {
			return fmt.Errorf("%w: element %d of page %d is not a bucket", ErrDamaged, i, id)
		}
		var err error
		if root := native.Uint64(value); root != 0 {
			err = w.tree(root, depth+1)
		} else {
			err = w.page(id, value[bucketHeader:], depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// slice returns the n bytes at position, counted from the element at at. It returns false if they are not all in b.
func slice(b []byte, at int, position, n uint64) ([]byte, bool) {
	from := uint64(at) + position
	to := from + n
	if to > uint64(len(b)) {
		return nil, false
	}
	return b[from:to], true
}
