package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt maps its file into memory and trusts what is in it: a file that is shorter than it says ends the
// process with SIGBUS, and a page that lists itself among its children overflows the stack, which no
// recover catches. So a file that may be damaged anywhere is read here, by the byte, and bbolt only gets
// files that this process has made itself.

// Of bbolt's format, which is in the byte order of the machine.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHead    = 16 // id(8) flags(2) count(2) overflow(4)
	pageElement = 16 // branch: pos(4) ksize(4) child(8); leaf: flags(4) pos(4) ksize(4) vsize(4)
	metaSize    = 64 // magic(4) version(4) page size(4) flags(4) root(8) sequence(8) freelist(8) end(8) tx(8) checksum(8)
	bucketHead  = 16 // root(8) sequence(8)

	branchPage = 1
	leafPage   = 2
	bucketLeaf = 1 // flag of a leaf's element whose value is a bucket

	// maxDepth is deeper than a tree of any size that fits a disk.
	maxDepth = 32
)

var bucketName = []byte("journal")

var order = binary.NativeEndian

// meta is one of the two pages at the start of a file that say where its tree is.
type meta struct {
	pageSize int64
	root     uint64 // page of the root bucket
	end      uint64 // the first page that has never been used
	tx       uint64
}

// file is a bolt file that may be damaged anywhere.
type file struct {
	r    io.ReaderAt
	size int64
}

// metas returns those of the two meta pages that are right, the newer one first.
func (f file) metas() ([]meta, error) {
	var (
		found   []meta
		readErr error
	)
	at := func(off int64) {
		var b [pageHead + metaSize]byte
		if _, err := f.r.ReadAt(b[:], off); err != nil {
			if readErr == nil && !errors.Is(err, io.EOF) {
				readErr = err
			}
			return
		}
		p := b[pageHead:]
		sum := fnv.New64a()
		sum.Write(p[:metaSize-8])
		if order.Uint32(p) != boltMagic || order.Uint32(p[4:]) != boltVersion || order.Uint64(p[56:]) != sum.Sum64() {
			return
		}
		m := meta{pageSize: int64(order.Uint32(p[8:])), root: order.Uint64(p[16:]), end: order.Uint64(p[40:]), tx: order.Uint64(p[48:])}
		if m.pageSize >= 1<<10 && m.pageSize <= 1<<24 && (off == 0 || off == m.pageSize) {
			found = append(found, m)
		}
	}
	at(0)
	// The size of a page is the machine's that made the file, and only a meta page tells it.
	for size := int64(1 << 10); size <= 1<<24; size <<= 1 {
		at(size)
	}
	switch {
	case len(found) == 0 && readErr != nil:
		return nil, readErr
	case len(found) == 0:
		return nil, errors.New("not a journal, or its beginning is damaged")
	case len(found) == 2 && found[1].tx > found[0].tx:
		found[0], found[1] = found[1], found[0]
	}
	return found, nil
}

// tree reads the entries below one meta page.
type tree struct {
	file
	meta
	seen []uint64 // a bit for each page of the file that has been read
	last []byte   // the key before
	each func(key, value []byte)
}

// walk calls each for the entries of the journal's bucket in the order of their keys. The slices are
// valid during the call only. An error says that the tree is damaged.
func (f file) walk(m meta, each func(key, value []byte)) error {
	t := &tree{file: f, meta: m, seen: make([]uint64, f.size/m.pageSize/64+1), each: each}
	root, err := t.page(m.root)
	if err != nil {
		return err
	}
	var bucket []byte
	if err := t.leaves(root, 0, func(flags uint32, key, value []byte) error {
		if flags&bucketLeaf != 0 && bytes.Equal(key, bucketName) {
			bucket = bytes.Clone(value)
		}
		return nil
	}); err != nil {
		return err
	}
	if len(bucket) < bucketHead {
		return errors.New("holds no journal")
	}
	page := bucket[bucketHead:] // a small bucket is kept inside its entry
	if id := order.Uint64(bucket); id != 0 {
		if page, err = t.page(id); err != nil {
			return err
		}
	}
	t.last = nil
	return t.leaves(page, 0, func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return errors.New("holds what is not a journal's")
		}
		t.each(key, value)
		return nil
	})
}

// page reads a page with all that overflows it. No page is read twice.
func (t *tree) page(id uint64) ([]byte, error) {
	if id < 2 || id >= t.end || id >= uint64(t.size/t.pageSize) {
		return nil, fmt.Errorf("page %d is not there", id)
	}
	var head [pageHead]byte
	if _, err := t.r.ReadAt(head[:], int64(id)*t.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	n := uint64(order.Uint32(head[12:])) + 1
	if order.Uint64(head[:]) != id || id+n > t.end || id+n > uint64(t.size/t.pageSize) {
		return nil, fmt.Errorf("page %d is damaged", id)
	}
	for p := id; p < id+n; p++ {
		if t.seen[p/64]&(1<<(p%64)) != 0 {
			return nil, fmt.Errorf("page %d is used twice", p)
		}
		t.seen[p/64] |= 1 << (p % 64)
	}
	b := make([]byte, int64(n)*t.pageSize)
	if _, err := t.r.ReadAt(b, int64(id)*t.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return b, nil
}

var errPage = errors.New("a page is damaged")

// leaves calls each for all entries in the leaves below a page.
func (t *tree) leaves(page []byte, depth int, each func(flags uint32, key, value []byte) error) error {
	if len(page) < pageHead || depth > maxDepth {
		return errPage
	}
	flags, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	if pageHead+count*pageElement > len(page) {
		return errPage
	}
	for i := range count {
		elem := page[pageHead+i*pageElement:]
		switch flags {
		case branchPage:
			child, err := t.page(order.Uint64(elem[8:]))
			if err != nil {
				return err
			}
			if err := t.leaves(child, depth+1, each); err != nil {
				return err
			}
		case leafPage:
			pos, ksize, vsize := uint64(order.Uint32(elem[4:])), uint64(order.Uint32(elem[8:])), uint64(order.Uint32(elem[12:]))
			if pos < pageElement || pos+ksize+vsize > uint64(len(elem)) {
				return errPage
			}
			key, value := elem[pos:pos+ksize], elem[pos+ksize:pos+ksize+vsize]
			if len(key) == 0 || bytes.Compare(key, t.last) <= 0 {
				return errPage
			}
			t.last = key
			if err := each(order.Uint32(elem), key, value); err != nil {
				return err
			}
		default:
			return errPage
		}
	}
	return nil
}
