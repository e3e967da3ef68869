package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// without runs a program on a machine that lacks something: "namespaces" and
// "networks" need a user namespace to forbid them in, "nftables" is a kernel
// without it.
func without(what string, args []string) error {
	var err error
	switch what {
	case "namespaces":
		err = os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
	case "networks":
		err = os.WriteFile("/proc/sys/user/max_net_namespaces", []byte("0"), 0)
	case "nftables":
		runtime.LockOSThread() // the filter is this thread's, and it executes the program
		err = refuseNetfilter()
	default:
		err = errors.New("want namespaces, networks or nftables")
	}
	if err != nil {
		return fmt.Errorf("run without %s: %w", what, err)
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// refuseNetfilter lets no netlink socket of netfilter be opened, here and in
// every child, as a kernel does that has no such module.
func refuseNetfilter() error {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: value}
	}
	answer := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	const number, family, protocol = 0, 16, 32 // offsets in struct seccomp_data, little-endian
	filter := []unix.SockFilter{
		load(number), unless(unix.SYS_SOCKET, 5),
		load(family), unless(unix.AF_NETLINK, 3),
		load(protocol), unless(unix.NETLINK_NETFILTER, 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
