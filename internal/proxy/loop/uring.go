package loop

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Constants of linux/io_uring.h.
const (
	uringOpSend = 26
	uringOpRecv = 27

	uringSetupClamp        = 1 << 4
	uringSetupSingleIssuer = 1 << 12
	uringSetupDeferTaskrun = 1 << 13

	uringFeatSingleMmap = 1 << 0
	uringFeatNoDrop     = 1 << 1

	uringOffRings = 0
	uringOffSQEs  = 0x10000000
)

// uringParams is struct io_uring_params.
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, resv1 uint32
		userAddr                                                uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, resv1 uint32
		userAddr                                                uint64
	}
}

// uringSQE is struct io_uring_sqe as send and recv use it.
type uringSQE struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	len       uint32
	msgFlags  uint32
	userData  uint64
	_         [3]uint64
}

// uringCQE is struct io_uring_cqe.
type uringCQE struct {
	userData uint64
	res      int32
	flags    uint32
}

// uring hands many socket calls to the kernel with one system call. Every
// descriptor of a loop is non-blocking, so each operation completes while it is
// submitted: the ring is a vector of calls, not a queue of waiting ones. It
// belongs to the thread that made it.
type uring struct {
	fd       int
	mem, sqm []byte
	sqTail   *uint32
	cqHead   *uint32
	cqTail   *uint32
	cqes     []uringCQE
	sqes     []uringSQE
	tail     uint32
	n        int // prepared, not submitted
}

// newURing makes a ring of size entries, a power of two. An error means that
// the kernel is too old or forbids it, as many containers do.
func newURing(size int) (*uring, error) {
	p := uringParams{flags: uringSetupClamp | uringSetupSingleIssuer | uringSetupDeferTaskrun}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(size), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &uring{fd: int(fd)}
	unix.CloseOnExec(r.fd)
	if p.features&uringFeatSingleMmap == 0 || p.features&uringFeatNoDrop == 0 || int(p.sqEntries) < size {
		r.close()
		return nil, fmt.Errorf("io_uring_setup: features %#x, %d entries: %w", p.features, p.sqEntries, unix.ENOTSUP)
	}
	size = int(p.sqEntries)
	rings := max(int(p.sq.array)+size*4, int(p.cq.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(uringCQE{})))
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	var err error
	if r.mem, err = unix.Mmap(r.fd, uringOffRings, rings, prot, flags); err != nil {
		r.close()
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	if r.sqm, err = unix.Mmap(r.fd, uringOffSQEs, size*int(unsafe.Sizeof(uringSQE{})), prot, flags); err != nil {
		r.close()
		return nil, fmt.Errorf("map io_uring entries: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[off])) }
	r.sqTail, r.cqHead, r.cqTail = at(p.sq.tail), at(p.cq.head), at(p.cq.tail)
	r.sqes = unsafe.Slice((*uringSQE)(unsafe.Pointer(&r.sqm[0])), size)
	r.cqes = unsafe.Slice((*uringCQE)(unsafe.Pointer(&r.mem[p.cq.cqes])), p.cqEntries)
	for i, array := 0, unsafe.Slice(at(p.sq.array), size); i < size; i++ {
		array[i] = uint32(i) // slot i always holds entry i
	}
	return r, nil
}

func (r *uring) close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	if r.sqm != nil {
		_ = unix.Munmap(r.sqm)
	}
	_ = unix.Close(r.fd)
}

// prepare adds one operation on fd with p, which must stay where it is until
// submit has returned. There is room for size of them.
func (r *uring) prepare(op uint8, fd int32, p []byte, msgFlags uint32) {
	i := r.n
	e := &r.sqes[(r.tail+uint32(i))&uint32(len(r.sqes)-1)]
	*e = uringSQE{op: op, fd: fd, addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), len: uint32(len(p)), msgFlags: msgFlags, userData: uint64(i)}
	r.n++
}

// submit runs what was prepared and puts the results, in the kernel's form
// (a count or a negative error number), into out, in the order of preparation.
func (r *uring) submit(out []int32) error {
	want := r.n
	if want == 0 {
		return nil
	}
	r.n = 0
	r.tail += uint32(want)
	atomic.StoreUint32(r.sqTail, r.tail)
	for left := want; left > 0; {
		n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(left), 0, 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		left -= int(n)
	}
	head, tail := *r.cqHead, atomic.LoadUint32(r.cqTail)
	if got := int(tail - head); got != want {
		return fmt.Errorf("io_uring_enter: %d of %d operations completed: %w", got, want, unix.ENOTSUP)
	}
	for ; head != tail; head++ {
		c := &r.cqes[head&uint32(len(r.cqes)-1)]
		out[c.userData] = c.res
	}
	atomic.StoreUint32(r.cqHead, head)
	return nil
}
